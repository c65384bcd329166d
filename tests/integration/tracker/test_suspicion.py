"""Nodes become suspect before their lease runs out, and come back; many at once are doubted."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import grpc
import pytest
from grpc_health.v1 import health_pb2

from stafett.api.v1 import tracker_pb2
from stafett.common.cluster import Address, NodeState
from stafett.common.grpc_transport import bind, new_server
from tests.integration.tracker.cluster import RunningTracker, Session, eventually, tracker
from tests.integration.valkey import ValkeyServer


@asynccontextmanager
async def healthy_port() -> AsyncIterator[int]:
    """A server that answers the tracker's probes."""
    server, health = new_server()
    port = bind(server, Address("127.0.0.1", 0), None)
    await server.start()
    await health.set("", health_pb2.HealthCheckResponse.SERVING)
    try:
        yield port
    finally:
        await server.stop(None)


async def wait_state(at: RunningTracker, node_id: str, *states: NodeState) -> None:
    async def reached() -> bool:
        return await at.state(node_id) in states

    await eventually(reached)


async def beat_until(session: Session, at: RunningTracker, state: NodeState) -> None:
    async def reached() -> bool:
        await session.beat()
        return await at.state(session.node_id) is state

    await eventually(reached)


async def test_a_broken_session_makes_a_node_suspect_before_heartbeats_are_missed(valkey: ValkeyServer) -> None:
    async with tracker(valkey.url, lease_ttl_seconds=4, heartbeat_interval_seconds=1.7) as at:
        await at.ready()
        session = Session(at, "n1")
        await session.register()
        await asyncio.sleep(4.0)  # a replica that has just started judges nobody for one lease time
        await session.beat()
        session.cut()
        await wait_state(at, "n1", NodeState.SUSPECT)
        assert (await at.nodes())["n1"].reason == "session broke"


async def test_a_node_that_misses_heartbeats_is_suspect_and_ready_again_when_they_come_back(
    valkey: ValkeyServer,
) -> None:
    async with tracker(valkey.url, lease_ttl_seconds=3, heartbeat_interval_seconds=0.4) as at:
        await at.ready()
        session = Session(at, "n1")
        await session.register()
        await wait_state(at, "n1", NodeState.SUSPECT)
        assert (await at.nodes())["n1"].reason == "heartbeats missed"
        await beat_until(session, at, NodeState.READY)
        assert (await at.nodes())["n1"].flaps == 1


async def test_a_session_that_is_resumed_in_time_leaves_the_node_ready(valkey: ValkeyServer) -> None:
    async with tracker(valkey.url) as at:
        await at.ready()
        session = Session(at, "n1")
        await session.register()
        session.cut()
        again = Session(at, "n1")
        await again.register()
        for _ in range(10):
            await again.beat()
            assert await at.state("n1") is NodeState.READY
            await asyncio.sleep(0.1)
        assert (await at.nodes())["n1"].flaps == 0


def report(node_id: str, epoch: int, reporter: str) -> tracker_pb2.ReportOutcomesRequest:
    return tracker_pb2.ReportOutcomesRequest(
        reporter=reporter, outcomes=[tracker_pb2.PeerOutcomes(node_id=node_id, epoch=epoch, refused=1)]
    )


async def test_two_reporters_and_a_silent_probe_make_a_node_suspect_one_never_does(valkey: ValkeyServer) -> None:
    async with tracker(valkey.url, lease_ttl_seconds=30, heartbeat_interval_seconds=10) as at:
        await at.ready()
        session = Session(at, "n1")
        await session.register(port=1)
        for _ in range(3):
            await at.stub.ReportOutcomes(report("n1", session.epoch, "gateway-1"), timeout=5)
        assert await at.state("n1") is NodeState.READY
        await at.stub.ReportOutcomes(report("n1", session.epoch - 1, "gateway-2"), timeout=5)
        assert await at.state("n1") is NodeState.READY, "a report about an older epoch counts for nothing"
        await at.stub.ReportOutcomes(report("n1", session.epoch, "gateway-2"), timeout=5)
        await wait_state(at, "n1", NodeState.SUSPECT)


async def test_reports_about_a_node_that_answers_its_probe_change_nothing(valkey: ValkeyServer) -> None:
    async with healthy_port() as port, tracker(valkey.url, lease_ttl_seconds=30, heartbeat_interval_seconds=10) as at:
        await at.ready()
        session = Session(at, "n1")
        await session.register(port=port)
        for reporter in ("gateway-1", "gateway-2", "gateway-3"):
            await at.stub.ReportOutcomes(report("n1", session.epoch, reporter), timeout=5)
        assert await at.state("n1") is NodeState.READY


async def told(session: Session, draining: bool) -> None:
    """Send heartbeats until the node knows the operator's wish."""

    async def known() -> bool:
        await session.beat()
        return session.drain_orders[-1:] == [draining]

    await eventually(known)


async def drained(at: RunningTracker, node_id: str) -> Session:
    """Open a session, and have the node drained by an operator."""
    session = Session(at, node_id)
    await session.register()
    await at.stub.DrainNode(tracker_pb2.DrainNodeRequest(node_id=node_id, draining=True), timeout=5)
    await wait_state(at, node_id, NodeState.DRAINING)
    await told(session, True)
    return session


async def test_an_operators_drain_outlives_the_loss_of_all_data(valkey: ValkeyServer) -> None:
    async with tracker(valkey.url, lease_ttl_seconds=30, heartbeat_interval_seconds=10) as at:
        await at.ready()
        await drained(at, "n1")
        await valkey.flush()
        again = Session(at, "n1")
        await again.register()
        await told(again, True)

        async def seen() -> bool:
            return (await at.nodes())["n1"].epoch == again.epoch

        await eventually(seen)
        node = (await at.nodes())["n1"]
        assert node.state is NodeState.DRAINING
        assert node.reason.startswith("drained by an operator")
        await at.stub.DrainNode(tracker_pb2.DrainNodeRequest(node_id="n1", draining=False), timeout=5)
        await wait_state(at, "n1", NodeState.READY)
        await told(again, False)


async def test_an_operators_drain_outlives_the_lease_but_not_the_process(valkey: ValkeyServer) -> None:
    async with tracker(valkey.url) as at:
        await at.ready()
        await drained(at, "n1")
        await wait_state(at, "n1", NodeState.DOWN)
        again = Session(at, "n1")
        await again.register()
        await told(again, True)
        await wait_state(at, "n1", NodeState.DRAINING)
        restarted = Session(at, "n1", incarnation=2)
        await restarted.register()
        await told(restarted, False)
        await wait_state(at, "n1", NodeState.READY)


async def test_a_node_that_moved_while_its_drain_was_revoked_hears_of_it(valkey: ValkeyServer) -> None:
    async with tracker(valkey.url, lease_ttl_seconds=30, heartbeat_interval_seconds=10) as at:
        await at.ready()
        (await drained(at, "n1")).cut()
        await at.stub.DrainNode(tracker_pb2.DrainNodeRequest(node_id="n1", draining=False), timeout=5)
        moved = Session(at, "n1")
        await moved.register()
        await told(moved, False)
        assert await at.state("n1") is NodeState.READY


async def test_an_operator_drains_a_node_and_brings_it_back(valkey: ValkeyServer) -> None:
    async with tracker(valkey.url, lease_ttl_seconds=30, heartbeat_interval_seconds=10) as at:
        await at.ready()
        session = Session(at, "n1")
        await session.register()
        await at.stub.DrainNode(tracker_pb2.DrainNodeRequest(node_id="n1", draining=True), timeout=5)
        await wait_state(at, "n1", NodeState.DRAINING)
        await told(session, True)
        await at.stub.DrainNode(tracker_pb2.DrainNodeRequest(node_id="n1", draining=False), timeout=5)
        await wait_state(at, "n1", NodeState.READY)
        await told(session, False)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await at.stub.DrainNode(tracker_pb2.DrainNodeRequest(node_id="nobody", draining=True), timeout=5)
        assert refused.value.code() is grpc.StatusCode.NOT_FOUND


async def test_when_many_nodes_fall_silent_but_answer_probes_none_is_judged(valkey: ValkeyServer) -> None:
    async with AsyncExitStack() as stack:
        port = await stack.enter_async_context(healthy_port())
        at = await stack.enter_async_context(tracker(valkey.url, lease_ttl_seconds=1.5, heartbeat_interval_seconds=0.3))
        await at.ready()
        for number in range(6):
            await Session(at, f"n{number}").register(port=port)

        async def guarded() -> bool:
            return (await at.stub.ListNodes(tracker_pb2.ListNodesRequest(), timeout=5)).mass_guard

        await eventually(guarded)
        await asyncio.sleep(3.0)
        assert await guarded()
        assert {node.state for node in (await at.nodes()).values()} == {NodeState.READY}


async def test_when_many_nodes_really_fail_the_guard_is_lifted_and_they_are_down(valkey: ValkeyServer) -> None:
    async with tracker(valkey.url, lease_ttl_seconds=1.5, heartbeat_interval_seconds=0.3) as at:
        await at.ready()
        for number in range(6):
            await Session(at, f"n{number}").register(port=1)
        for number in range(6):
            await wait_state(at, f"n{number}", NodeState.DOWN)
