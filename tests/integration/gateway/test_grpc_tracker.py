"""The trackers as a gateway sees them: one that is cut off, frozen, or behind never has the last word."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace

import pytest

from stafett.api.v1 import tracker_pb2, tracker_pb2_grpc
from stafett.common import wire
from stafett.common.cluster import Address, Node, NodeState
from stafett.common.digest import Digest
from stafett.common.errors import Unavailable
from stafett.common.grpc_transport import tracker_channel
from stafett.common.topology import Topology
from stafett.gateway import grpc_tracker
from stafett.gateway.grpc_tracker import GrpcTracker
from stafett.gateway.ports import PeerTally
from stafett.gateway.selection import Asking
from tests.integration.gateway.bed import Peer, ScriptedTracker, start_server

D = Digest.of(b"a layer")
CALLS = 4


class Replica(ScriptedTracker):
    """One tracker; `stale` answers from memory, `frozen` never takes a report, `steps` is what its Watch says."""

    Session = Relay = DrainNode = ListNodes = ListImages = None  # type: ignore[assignment] # not called

    def __init__(self, holder: str = "n1", *, stale: bool = False, frozen: bool = False) -> None:
        super().__init__([Peer(holder, {D: b"a layer"})])
        self.stale = stale
        self.frozen = frozen
        self.steps: list[tracker_pb2.WatchResponse] = []
        self.reports: list[tracker_pb2.ReportOutcomesRequest] = []

    async def Locate(  # noqa: N802
        self, request: tracker_pb2.LocateRequest, context: object
    ) -> tracker_pb2.LocateResponse:
        answer = await super().Locate(request, context)
        answer.stale = self.stale
        return answer

    async def Watch(  # noqa: N802
        self, request: tracker_pb2.WatchRequest, context: object
    ) -> AsyncIterator[tracker_pb2.WatchResponse]:
        for step in self.steps:
            yield step
        await asyncio.sleep(3600)

    async def ReportOutcomes(  # noqa: N802
        self, request: tracker_pb2.ReportOutcomesRequest, context: object
    ) -> tracker_pb2.ReportOutcomesResponse:
        if self.frozen:
            await asyncio.sleep(3600)
        self.reports.append(request)
        return tracker_pb2.ReportOutcomesResponse()


@asynccontextmanager
async def trackers(*replicas: Replica) -> AsyncIterator[GrpcTracker]:
    async with AsyncExitStack() as stack:
        add = tracker_pb2_grpc.add_TrackerServiceServicer_to_server
        ports = [
            await start_server(stack, lambda server, replica=replica: add(replica, server))  # type: ignore[misc]
            for replica in replicas
        ]
        channel = tracker_channel("ipv4:" + ",".join(f"127.0.0.1:{port}" for port in ports), None)
        stack.push_async_callback(channel.close)
        tracker = GrpcTracker(channel, Asking("me", Topology("eu", "a")))
        async with asyncio.timeout(10):
            while not all(replica.located for replica in replicas):  # all connections are there
                await tracker.locate([D])
        yield tracker


def snapshot(*nodes: Node) -> tracker_pb2.WatchResponse:
    return tracker_pb2.WatchResponse(
        snapshot=tracker_pb2.NodeSnapshot(nodes=[wire.node_to_wire(node) for node in nodes])
    )


async def test_an_older_snapshot_does_not_override_what_is_known_and_who_is_not_in_it_is_forgotten() -> None:
    down = Node("n1", 5, Address("n1", 1), state=NodeState.DOWN, sequence=3)
    ready, last = replace(down, state=NodeState.READY, sequence=1), Node("last", 1, Address("last", 1))
    replica, nodes = Replica(), dict[str, Node]()
    replica.steps = [
        snapshot(down, Node("gone", 1, Address("gone", 1))),
        snapshot(ready, Node("n2", 7, Address("n2", 1)), last),
    ]
    async with trackers(replica) as tracker:
        watching = asyncio.create_task(tracker.watch(nodes))
        async with asyncio.timeout(10):
            while "last" not in nodes:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        watching.cancel()
    assert {node.id: node.state for node in nodes.values()} == {
        "n1": NodeState.DOWN,
        "n2": NodeState.READY,
        "last": NodeState.READY,
    }


async def located(tracker: GrpcTracker) -> list[Sequence[str]]:
    answers = [await tracker.locate([D]) for _ in range(CALLS)]
    return [[holder.node.id for holder in answer[D]] for answer in answers]


async def test_what_one_tracker_tells_from_memory_another_is_asked_for() -> None:
    async with trackers(Replica("long gone", stale=True), Replica("here")) as tracker:
        assert await located(tracker) == [["here"]] * CALLS


async def test_where_all_trackers_tell_from_memory_that_is_the_answer() -> None:
    async with trackers(Replica("n1", stale=True)) as tracker:
        assert await located(tracker) == [["n1"]] * CALLS


@pytest.fixture
def short_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grpc_tracker, "REPORT_SECONDS", 0.75)


@pytest.mark.usefixtures("short_deadline")
async def test_a_report_that_one_tracker_does_not_take_reaches_another() -> None:
    well, frozen = Replica(), Replica(frozen=True)
    async with trackers(well, frozen) as tracker:
        for _ in range(CALLS):
            await tracker.report({"n1": PeerTally(1, refused=1, corrupt={D})})
    assert len(well.reports) == CALLS
    assert well.reports[0].outcomes[0].corrupt_digests == [str(D)]


@pytest.mark.usefixtures("short_deadline")
async def test_a_report_that_no_tracker_takes_is_known_to_be_lost() -> None:
    async with trackers(Replica(frozen=True)) as tracker:
        with pytest.raises(Unavailable):
            await tracker.report({"n1": PeerTally(1, refused=1)})
