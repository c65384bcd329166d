"""The view and its watchers, fed by hand. The scripted store only decides when the view hears what."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from typing import cast

from stafett.common.cluster import Address, Node, NodeState
from stafett.common.errors import Unavailable
from stafett.tracker.membership import WATCH_QUEUE_MAX, Membership
from stafett.tracker.membership_store import Change, MembershipStore, Scan, Snapshot
from stafett.tracker.proximity import Member


def member(node_id: str, epoch: int, sequence: int = 0, state: NodeState = NodeState.READY) -> Member:
    return Member(Node(node_id, epoch, Address("127.0.0.1", 1), state=state, sequence=sequence), 1)


class ScriptedStore:
    """Hands out snapshots and events as a test puts them in."""

    def __init__(self, *members: Member, revision: int = 10) -> None:
        self.current = Snapshot("g1", revision, {each.node.id: each for each in members})
        self.events: asyncio.Queue[Change] = asyncio.Queue()
        self.away = False

    async def snapshot(self) -> Snapshot:
        return self.current

    async def events_after(self, revision: int) -> list[Change]:
        if self.away:
            raise Unavailable("Redis", "killed")
        try:
            async with asyncio.timeout(0.01):
                return [await self.events.get()]
        except TimeoutError:
            return []


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


@asynccontextmanager
async def view(store: ScriptedStore, refill_seconds: float = 60) -> AsyncIterator[Membership]:
    membership = Membership(cast(MembershipStore, store), refill_seconds)
    task = asyncio.create_task(membership.run())
    await membership.loaded.wait()
    yield membership
    task.cancel()
    await asyncio.wait([task])


async def test_a_watch_starts_with_a_snapshot_and_goes_on_with_changes() -> None:
    store = ScriptedStore(member("a", 1))
    async with view(store) as membership, aclosing(membership.watch()) as steps:
        first = await anext(steps)
        assert (first.revision, first.snapshot, [node.id for node in first.nodes]) == (10, True, ["a"])
        store.events.put_nowait(Change(11, member("b", 2), False))
        second = await anext(steps)
        assert (second.revision, second.snapshot, [node.id for node in second.nodes]) == (11, False, ["b"])


async def test_a_watcher_that_cannot_keep_up_gets_a_new_snapshot() -> None:
    store = ScriptedStore(member("a", 1))
    async with view(store) as membership, aclosing(membership.watch()) as steps:
        await anext(steps)
        last = 10 + WATCH_QUEUE_MAX + 5
        for revision in range(11, last + 1):
            store.events.put_nowait(Change(revision, member("a", revision), False))
        await until(lambda: membership.members["a"].node.epoch == last)
        step = await anext(steps)
        assert (step.snapshot, step.revision, step.nodes[0].epoch) == (True, last, last)


async def test_a_gap_in_the_revisions_calls_for_a_new_snapshot() -> None:
    store = ScriptedStore(member("a", 1))
    async with view(store) as membership, aclosing(membership.watch()) as steps:
        await anext(steps)
        store.current = Snapshot("g1", 13, {"c": member("c", 3)})
        store.events.put_nowait(Change(13, member("c", 3), False))
        while not (step := await anext(steps)).snapshot:
            pass
        assert [node.id for node in step.nodes] == ["c"]
        assert set(membership.members) == {"c"}


async def test_of_two_descriptions_the_higher_epoch_and_sequence_wins() -> None:
    store = ScriptedStore(member("a", 5, 2))
    async with view(store) as membership:
        store.events.put_nowait(Change(11, member("a", 5, 1, NodeState.DOWN), False))
        store.events.put_nowait(Change(12, member("b", 1), False))
        await until(lambda: "b" in membership.members)
        assert membership.members["a"].node.state is NodeState.READY


async def test_a_forgotten_node_leaves_the_view() -> None:
    store = ScriptedStore(member("a", 5))
    async with view(store) as membership:
        store.events.put_nowait(Change(11, member("a", 5, 1, NodeState.DOWN), True))
        await until(lambda: not membership.members)


async def test_after_a_loss_of_data_the_old_view_stays_until_the_nodes_had_time_to_come_back() -> None:
    store = ScriptedStore(member("a", 1), member("gone", 1))
    async with view(store, refill_seconds=0.3) as membership, aclosing(membership.watch()) as steps:
        await anext(steps)
        store.current = Snapshot("g2", 1, {"a": member("a", 2)})
        membership.observe(Scan("g2", 0, 0, 0, 0, 0, False, False, ()))
        assert membership.refilling
        kept = await anext(steps)
        assert (kept.snapshot, kept.revision, len(kept.nodes)) == (True, 0, 2)
        store.events.put_nowait(Change(1, member("a", 2), False))
        await until(lambda: membership.members["a"].node.epoch == 2)
        assert "gone" in membership.members
        await until(lambda: not membership.refilling)
        await until(lambda: "gone" not in membership.members)


async def test_a_smaller_revision_calls_for_a_new_snapshot() -> None:
    store = ScriptedStore(member("a", 1))
    async with view(store) as membership:
        store.current = Snapshot("g1", 7, {"b": member("b", 1)})
        membership.observe(Scan("g1", 7, 0, 0, 0, 0, False, False, ()))
        await until(lambda: set(membership.members) == {"b"})


async def test_watchers_hear_at_once_that_redis_is_away_and_that_it_is_back() -> None:
    store = ScriptedStore(member("a", 1))
    async with view(store) as membership, aclosing(membership.watch()) as steps:
        assert (await anext(steps)).snapshot
        for store.away in (True, False):
            step = await anext(steps)
            assert (step.nodes, membership.stale) == ((), store.away)
        assert "a" in membership.members
