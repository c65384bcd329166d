"""Sessions, leases and fences, over real gRPC and a real Valkey."""

from __future__ import annotations

from collections.abc import AsyncIterator

import grpc
import pytest

from stafett.api.v1 import tracker_pb2
from stafett.common.cluster import NodeState
from stafett.common.digest import Digest
from stafett.common.inventory import Inventory
from stafett.common.topology import Topology
from tests.integration.tracker.cluster import RunningTracker, Session, SessionEnded, eventually, tracker
from tests.integration.valkey import ValkeyServer

A, B, C = (Digest.of(name) for name in (b"a", b"b", b"c"))


@pytest.fixture
async def one(valkey: ValkeyServer) -> AsyncIterator[RunningTracker]:
    async with tracker(valkey.url) as running:
        await running.ready()
        yield running


async def test_a_registered_node_is_listed_with_what_it_said_of_itself(one: RunningTracker) -> None:
    session = Session(one, "n1", place=Topology("eu", "eu-1", "r/1"))
    assert await session.register(port=7001)
    await session.announce(A, B, reset=True)
    await session.beat()

    async def listed() -> bool:
        return await one.state("n1") is NodeState.READY

    await eventually(listed)
    node = (await one.nodes())["n1"]
    assert node.epoch == session.epoch
    assert (node.address.host, node.address.port) == ("127.0.0.1", 7001)
    assert node.topology == Topology("eu", "eu-1", "r/1")
    assert node.labels == {"disk": "ssd"}
    assert node.health is not None
    assert node.health.active_streams == 3
    assert node.blob_count == 2
    await session.end()


async def test_a_late_message_of_an_old_session_changes_nothing(one: RunningTracker) -> None:
    old = Session(one, "n1", incarnation=1)
    await old.register()
    await old.announce(A, reset=True)
    new = Session(one, "n1", incarnation=2)
    assert await new.register()
    assert new.epoch > old.epoch
    await new.announce(B, reset=True)
    with pytest.raises(SessionEnded) as ended:
        await old.announce(C)
    assert ended.value.code is grpc.StatusCode.ABORTED
    assert await one.holder_ids(B) == ["n1"]
    assert await one.holder_ids(A) == []
    assert await one.holder_ids(C) == []
    await new.end()


@pytest.mark.parametrize("message", ["beat", "drain"])
async def test_an_old_session_is_aborted_at_its_next_message(one: RunningTracker, message: str) -> None:
    old = Session(one, "n1")
    await old.register()
    new = Session(one, "n1")
    await new.register()
    if message == "beat":
        await old.send(heartbeat=tracker_pb2.Heartbeat(sequence=1))
    else:
        await old.drain()
    with pytest.raises(SessionEnded) as ended:
        await old.receive()
    assert ended.value.code is grpc.StatusCode.ABORTED
    await new.beat()

    async def ready() -> bool:
        return await one.state("n1") is NodeState.READY

    await eventually(ready)
    await new.end()


async def test_a_session_that_moves_keeps_its_holdings(one: RunningTracker) -> None:
    first = Session(one, "n1", incarnation=5)
    assert await first.register()
    await first.announce(A, B, reset=True)
    first.cut()
    second = Session(one, "n1", incarnation=5)
    assert not await second.register(Inventory.of([A, B]))
    assert await one.holder_ids(A) == ["n1"]
    third = Session(one, "n1", incarnation=5)
    assert await third.register(Inventory.of([A, B, C]))
    third.cut()
    second.cut()


async def test_the_summary_follows_withdrawals_and_repeated_announcements(one: RunningTracker) -> None:
    session = Session(one, "n1", incarnation=5)
    await session.register()
    await session.announce(A, B, reset=True)
    await session.announce(B, C, withdraws=[A])
    await session.announce(C)
    again = Session(one, "n1", incarnation=5)
    assert not await again.register(Inventory.of([B, C]))
    assert await one.holder_ids(A) == []
    await again.announce(A, reset=True)
    last = Session(one, "n1", incarnation=5)
    assert not await last.register(Inventory.of([A]))
    assert await one.holder_ids(B) == []
    for each in (session, again, last):
        each.cut()


async def test_a_lease_that_runs_out_takes_the_node_down_and_hides_its_holdings(one: RunningTracker) -> None:
    session = Session(one, "n1")
    await session.register()
    await session.announce(A, reset=True)
    session.cut()
    assert await one.holder_ids(A) == ["n1"]

    async def down() -> bool:
        return await one.state("n1") is NodeState.DOWN

    await eventually(down)
    assert (await one.nodes())["n1"].reason == "lease expired"
    assert await one.holder_ids(A) == []
    back = Session(one, "n1")
    assert not await back.register(Inventory.of([A]))

    async def holds() -> bool:
        return await one.holder_ids(A) == ["n1"]

    await eventually(holds)
    back.cut()


async def test_a_draining_node_takes_no_new_streams_and_is_down_when_it_leaves(one: RunningTracker) -> None:
    session = Session(one, "n1")
    await session.register()
    await session.announce(A, reset=True)
    await session.drain()

    async def draining() -> bool:
        return await one.state("n1") is NodeState.DRAINING

    await eventually(draining)
    assert await one.holder_ids(A) == []
    moved = Session(one, "n1")
    await moved.register(Inventory.of([A]))
    await moved.beat()
    assert await one.state("n1") is NodeState.DRAINING
    await moved.drain(False)
    await moved.beat()

    async def holds() -> bool:
        return await one.holder_ids(A) == ["n1"]

    await eventually(holds)
    await moved.drain()
    await moved.beat()
    await moved.end()

    async def left() -> bool:
        return (await one.nodes())["n1"].reason == "left after draining"

    await eventually(left)
    assert await one.state("n1") is NodeState.DOWN
    session.cut()


async def test_a_node_that_stays_down_is_forgotten_with_all_it_held(valkey: ValkeyServer) -> None:
    async with tracker(valkey.url, forget_after_seconds=1) as running:
        await running.ready()
        session = Session(running, "n1")
        await session.register()
        await session.announce(A, reset=True)
        await session.drain()
        await session.beat()
        await session.end()

        async def forgotten() -> bool:
            return await running.state("n1") is None

        await eventually(forgotten)
        again = Session(running, "n1")
        assert await again.register(Inventory.of([A]))
        again.cut()


async def test_a_node_whose_index_differs_is_told_to_announce_everything(
    valkey: ValkeyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stafett.tracker.session.COMPARE_SECONDS", 0.0)
    async with tracker(valkey.url) as running:
        await running.ready()
        session = Session(running, "n1")
        await session.register()
        await session.announce(A, B, reset=True)
        await session.beat(Inventory.of([A, B]))
        await session.beat()
        await session.beat(Inventory.of([A, C]))
        assert (await session.receive()).command.announce_all.reason == "the index differs from what the node holds"
        await session.announce(A, C, reset=True)
        await session.beat(Inventory.of([A, C]))
        await session.beat()
        assert await running.holder_ids(B) == []
        session.cut()
