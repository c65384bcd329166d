"""Relay trees over real trackers and a real Redis: one claim, whichever replica is asked and whatever is lost."""

from __future__ import annotations

import asyncio
import itertools

import grpc
import pytest

from stafett.api.v1 import tracker_pb2
from stafett.common.digest import Digest
from tests.integration.tracker.cluster import LivingNode, RunningTracker, eventually, living, tracker
from tests.integration.valkey import ValkeyServer

SIZE = 100_000_000
_numbers = itertools.count()


def fresh() -> Digest:
    """A digest that no other test asks for."""
    return Digest.of(f"relay {next(_numbers)}".encode())


async def ask(
    at: RunningTracker,
    digest: Digest,
    node_id: str,
    phase: tracker_pb2.RelayPhase.ValueType = tracker_pb2.RELAY_PHASE_ENTER,
    got: int = 0,
    **more: object,
) -> tracker_pb2.RelayResponse:
    request = tracker_pb2.RelayRequest(
        digest=str(digest),
        node_id=node_id,
        phase=phase,
        size_bytes=SIZE,
        received_bytes=got,
        ingest_open=True,
        **more,  # type: ignore[arg-type]
    )
    return await at.stub.Relay(request, timeout=10)


async def all_ready(at: RunningTracker, count: int) -> None:
    await at.ready()

    async def known() -> bool:
        return len(await at.nodes()) == count

    await eventually(known)


def fleet(trackers: list[RunningTracker], count: int) -> list[LivingNode]:
    return [LivingNode(trackers, f"n{number}", []) for number in range(count)]


async def test_one_host_fetches_whichever_replica_is_asked(valkey: ValkeyServer) -> None:
    async with tracker(valkey.url) as first, tracker(valkey.url) as second, living(fleet([first, second], 6)):
        await all_ready(first, 6)
        await all_ready(second, 6)
        for digest in (fresh() for _ in range(10)):
            asked = [ask((first, second)[number % 2], digest, f"n{number}") for number in range(6)]
            answers = await asyncio.gather(*asked)
            assert sorted(answer.WhichOneof("answer") or "" for answer in answers) == ["fetch", *["wait"] * 5]


async def test_who_waits_is_told_as_soon_as_the_first_bytes_are_there(valkey: ValkeyServer) -> None:
    async with tracker(valkey.url) as running, living(fleet([running], 3)):
        await all_ready(running, 3)
        digest = fresh()
        claim = (await ask(running, digest, "n0")).fetch.token
        waiting = [asyncio.create_task(ask(running, digest, name)) for name in ("n1", "n2")]
        await asyncio.sleep(0.2)
        assert not any(task.done() for task in waiting)
        await ask(running, digest, "n0", tracker_pb2.RELAY_PHASE_STAY, 1000, token=claim)
        parents = {(await task).follow.node.id for task in waiting}
        assert parents == {"n0", "n1"}


async def test_a_tree_survives_the_replica_that_owned_it(valkey: ValkeyServer) -> None:
    digests = [fresh() for _ in range(8)]
    async with tracker(valkey.url) as second:
        async with tracker(valkey.url) as first:
            nodes = fleet([second], 3)
            async with living(nodes):
                await all_ready(first, 3)
                await all_ready(second, 3)
                for digest in digests:
                    assert (await ask(first, digest, "n0")).HasField("fetch")
        async with living(nodes):
            answers = await asyncio.gather(*(ask(second, digest, "n1") for digest in digests))
            assert not any(answer.HasField("fetch") for answer in answers)


async def test_a_claim_outlives_a_flush_and_an_absence_of_redis(valkey: ValkeyServer) -> None:
    async with tracker(valkey.url, lease_ttl_seconds=10) as running, living(fleet([running], 3)):
        await all_ready(running, 3)
        digest = fresh()
        claim = (await ask(running, digest, "n0")).fetch.token
        await valkey.flush()
        await all_ready(running, 3)
        assert (await ask(running, digest, "n1")).HasField("wait")
        await valkey.kill()
        still = await ask(running, digest, "n0", tracker_pb2.RELAY_PHASE_STAY, 500, token=claim)
        assert still.fetch.token == claim
        assert (await ask(running, digest, "n2")).HasField("follow")
        await valkey.start()


@pytest.mark.parametrize(
    "wrong",
    [
        {"digest": "sha256:x"},
        {"node_id": ""},
        {"phase": 0},
        {"phase": 9},
        {"left": [tracker_pb2.LeftParent(node_id=f"n{number}") for number in range(65)]},
    ],
)
async def test_a_malformed_request_is_refused(valkey: ValkeyServer, wrong: dict[str, object]) -> None:
    right: dict[str, object] = {"digest": str(fresh()), "node_id": "n1", "phase": 1}
    async with tracker(valkey.url) as running:
        await running.ready()
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await running.stub.Relay(tracker_pb2.RelayRequest(**{**right, **wrong}), timeout=5)  # type: ignore[arg-type]
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
