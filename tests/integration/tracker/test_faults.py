"""What happens when Redis is flushed, killed, frozen or late, and when trackers come and go."""

from __future__ import annotations

import asyncio
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from stafett.api.v1 import tracker_pb2
from stafett.cli.local_cluster.processes import free_port
from stafett.common.cluster import NodeState
from stafett.common.digest import Digest
from stafett.common.errors import StartupFailed
from stafett.common.topology import Topology
from stafett.tracker.app import SERVICE
from tests.integration.tracker.cluster import LivingNode, RunningTracker, Session, eventually, living, tracker
from tests.integration.valkey import ValkeyServer

A, B = Digest.of(b"a"), Digest.of(b"b")


def fleet(trackers: list[RunningTracker], count: int) -> list[LivingNode]:
    return [LivingNode(trackers, f"n{number}", [A, B], Topology("eu", f"eu-{number % 3}")) for number in range(count)]


async def await_holders(at: RunningTracker, count: int) -> None:
    await at.ready()

    async def complete() -> bool:
        holders, stale = await at.locate(B, most=64)
        return len(holders) == count and not stale

    await eventually(complete)


async def health_of(at: RunningTracker, service: str) -> int:
    stub = health_pb2_grpc.HealthStub(at.channel)
    response: health_pb2.HealthCheckResponse = await stub.Check(  # type: ignore[attr-defined]
        health_pb2.HealthCheckRequest(service=service), timeout=5
    )
    return response.status


async def test_a_flushed_redis_is_refilled_by_the_nodes(valkey: ValkeyServer) -> None:
    async with tracker(valkey.url) as first, tracker(valkey.url) as second:
        nodes = fleet([first, second], 40)
        async with living(nodes):
            await await_holders(first, 40)
            await valkey.flush()

            async def refilled() -> bool:
                return all(node.sessions > 1 for node in nodes) and len(await second.nodes()) == 40

            await eventually(refilled)
            await await_holders(first, 40)
            await await_holders(second, 40)
            assert {node.state for node in (await first.nodes()).values()} == {NodeState.READY}


async def test_holders_are_still_named_while_a_flushed_redis_refills(valkey: ValkeyServer) -> None:
    async with tracker(valkey.url, lease_ttl_seconds=10) as running:
        await running.ready()
        session = Session(running, "n1")
        await session.register()
        await session.announce(A, reset=True)

        async def held() -> bool:
            return await running.holder_ids(A) == ["n1"]

        await eventually(held)
        watch = running.stub.Watch(tracker_pb2.WatchRequest(), timeout=60)
        assert len((await anext(aiter(watch))).snapshot.nodes) == 1
        await valkey.flush()
        for _ in range(20):  # from the first moment on, before any scan has noticed
            assert await held()
            await asyncio.sleep(0.05)
        session.cut()
        watch.cancel()


async def test_while_a_flushed_redis_refills_who_has_not_come_back_yet_is_named_beside_who_has(
    valkey: ValkeyServer,
) -> None:
    async with tracker(valkey.url, lease_ttl_seconds=10) as running:
        await running.ready()
        early, late = Session(running, "early"), Session(running, "late")
        for session in (early, late):
            await session.register()
            await session.announce(A, reset=True)

        async def named() -> set[str]:
            return set(await running.holder_ids(A))

        async def both() -> bool:
            return await named() == {"early", "late"}

        await eventually(both)
        await valkey.flush()
        early.cut()
        again = Session(running, "early", incarnation=early.incarnation)
        await again.register()
        await again.announce(A, reset=True)
        for _ in range(20):
            assert await named() == {"early", "late"}, "who asks may have reason not to trust the first"
            await asyncio.sleep(0.05)
        for session in (again, late):
            session.cut()


async def test_a_restarted_tracker_knows_everything_at_once(valkey: ValkeyServer) -> None:
    async with tracker(valkey.url) as first:
        await first.ready()
        session = Session(first, "n1")
        await session.register()
        await session.announce(A, reset=True)
    async with tracker(valkey.url) as second:
        await second.ready()
        assert await second.holder_ids(A) == ["n1"]


async def test_a_killed_redis_gives_stale_answers_and_its_return_fresh_ones(valkey: ValkeyServer) -> None:
    async with tracker(valkey.url) as running, living(fleet([running], 5)):
        await await_holders(running, 5)
        watch = running.stub.Watch(tracker_pb2.WatchRequest(), timeout=60)
        steps = aiter(watch)
        assert not (await anext(steps)).stale
        await valkey.kill()

        async def stale() -> bool:
            return (await running.locate(B))[1]

        await eventually(stale)
        holders, _ = await running.locate(B)
        assert len(holders) == 5
        listed = await running.stub.ListNodes(tracker_pb2.ListNodesRequest(), timeout=5)
        assert (len(listed.nodes), listed.stale) == (5, True)
        assert await health_of(running, SERVICE) == health_pb2.HealthCheckResponse.SERVING
        while not (await anext(steps)).stale:
            pass
        late = running.stub.Watch(tracker_pb2.WatchRequest(), timeout=60)
        first = await anext(aiter(late))
        assert (len(first.snapshot.nodes), first.stale) == (5, True)
        late.cancel()
        await valkey.start()
        while (await anext(steps)).stale:
            pass
        watch.cancel()
        await await_holders(running, 5)


async def test_a_redis_that_freezes_for_longer_than_a_lease_takes_nobody_down(valkey: ValkeyServer) -> None:
    async with tracker(valkey.url) as running:
        await running.ready()
        session = Session(running, "n1")
        await session.register()
        await session.beat()
        watch = running.stub.Watch(tracker_pb2.WatchRequest(), timeout=60)
        steps = aiter(watch)
        assert (await anext(steps)).HasField("snapshot")
        valkey.freeze()
        await asyncio.sleep(2.5)
        valkey.thaw()
        session.sequence = 0

        async def renewed() -> bool:
            session.sequence += 1
            await session.send(heartbeat=tracker_pb2.Heartbeat(sequence=session.sequence))
            await asyncio.sleep(0.2)
            return await running.state("n1") is NodeState.READY and session.sequence > 10

        await eventually(renewed)
        assert (await running.nodes())["n1"].epoch == session.epoch
        session.cut()
        watch.cancel()


async def test_a_heartbeat_without_redis_is_not_acknowledged_and_the_session_goes_on(valkey: ValkeyServer) -> None:
    async with tracker(valkey.url, lease_ttl_seconds=30) as running:
        await running.ready()
        session = Session(running, "n1")
        await session.register()
        valkey.freeze()
        await session.send(heartbeat=tracker_pb2.Heartbeat(sequence=1))
        await asyncio.sleep(1.5)
        valkey.thaw()
        await session.send(heartbeat=tracker_pb2.Heartbeat(sequence=2))
        assert (await session.receive()).heartbeat_ack.sequence == 2
        session.cut()


async def test_a_tracker_waits_for_a_redis_that_comes_later(tmp_path: Path) -> None:
    server = ValkeyServer(tmp_path)
    async with tracker(server.url) as running:
        assert await health_of(running, SERVICE) == health_pb2.HealthCheckResponse.NOT_SERVING
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await running.locate(A)
        assert error.value.code() is grpc.StatusCode.UNAVAILABLE
        async with server:
            await running.ready()

            async def serving() -> bool:
                return await health_of(running, "") == health_pb2.HealthCheckResponse.SERVING

            await eventually(serving)


async def test_a_taken_port_is_told_in_one_line(valkey: ValkeyServer) -> None:
    async with tracker(valkey.url) as running:
        with pytest.raises(StartupFailed, match=f"cannot listen on 127\\.0\\.0\\.1:{running.port}: it is taken"):
            await RunningTracker.start(valkey.url, listen_port=running.port)


async def test_the_master_is_found_through_a_sentinel(valkey: ValkeyServer, tmp_path: Path) -> None:
    config = tmp_path / "sentinel.conf"
    config.write_text(f"bind 127.0.0.1\nsentinel monitor main 127.0.0.1 {valkey.port} 1\n")
    sentinel = ValkeyServer(tmp_path, options=[str(config), "--sentinel"])
    url = f"redis+sentinel://127.0.0.1:{free_port()},127.0.0.1:{sentinel.port}/main/0"
    async with sentinel, tracker(url) as running:
        await running.ready()
        session = Session(running, "n1")
        await session.register()
        await session.announce(A, reset=True)

        async def held() -> bool:
            return await running.holder_ids(A) == ["n1"]

        await eventually(held)
        session.cut()
