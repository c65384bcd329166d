"""What is remembered of the trackers' answers."""

from __future__ import annotations

import asyncio

from stafett.common.digest import Digest
from stafett.gateway.locator import FRESH_SECONDS, NEGATIVE_FRESH_SECONDS, TRACKER_REST_SECONDS, Locator
from tests.unit.gateway.cluster import FakeTracker, holder

A, B, C = Digest.of(b"a"), Digest.of(b"b"), Digest.of(b"c")


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


async def test_many_who_ask_at_once_share_one_call() -> None:
    tracker = FakeTracker({A: (holder("n1", 1),)})
    async with asyncio.TaskGroup() as group:
        locator = Locator(tracker, group, Clock())
        answers = await asyncio.gather(*(locator.locate([A, B]) for _ in range(10)))
    assert tracker.calls == [(A, B)]
    assert all(answer[A][0].node.id == "n1" and answer[B] == () for answer in answers)


async def test_only_what_is_not_known_is_asked_for() -> None:
    tracker = FakeTracker({A: (holder("n1", 1),), B: (holder("n2", 1),)})
    async with asyncio.TaskGroup() as group:
        locator = Locator(tracker, group, Clock())
        await locator.locate([A])
        await locator.locate([A, B])
        await locator.locate([A], fresh=True)
    assert tracker.calls == [(A,), (B,), (A,)]


async def test_a_yes_stays_fresh_for_longer_than_a_no() -> None:
    clock, tracker = Clock(), FakeTracker({A: (holder("n1", 1),)})
    async with asyncio.TaskGroup() as group:
        locator = Locator(tracker, group, clock)
        await locator.locate([A, B])
        clock.now += (NEGATIVE_FRESH_SECONDS + FRESH_SECONDS) / 2
        await locator.locate([A, B])
        clock.now += FRESH_SECONDS
        await locator.locate([A, B])
    assert tracker.calls == [(A, B), (B,), (A, B)]


async def test_without_trackers_the_remembered_answer_is_given_and_the_tracker_rests() -> None:
    clock, tracker = Clock(), FakeTracker({A: (holder("n1", 1),)})
    async with asyncio.TaskGroup() as group:
        locator = Locator(tracker, group, clock)
        await locator.locate([A])
        tracker.away = True
        clock.now += 3600
        for _ in range(5):
            located = await locator.locate([A, C])
            assert [found.node.id for found in located[A]] == ["n1"]
            assert located[C] == ()
        assert len(tracker.calls) == 2, "one failed call, then it is left alone"
        assert not locator.tracker_reachable
        assert locator.stale_lookups == 5
        clock.now += TRACKER_REST_SECONDS
        tracker.away = False
        await locator.locate([C])
        assert locator.stale_lookups == 5
        assert locator.tracker_reachable


async def test_a_holder_that_has_lost_the_blob_is_forgotten() -> None:
    async with asyncio.TaskGroup() as group:
        locator = Locator(FakeTracker({A: (holder("n1", 1), holder("n2", 1))}), group, Clock())
        await locator.locate([A])
        locator.forget(A, "n1")
        assert [found.node.id for found in (await locator.locate([A]))[A]] == ["n2"]


async def test_a_tracker_that_cannot_tell_takes_nothing_away_from_what_is_remembered() -> None:
    clock, tracker = Clock(), FakeTracker({A: (holder("n1", 1),)})
    async with asyncio.TaskGroup() as group:
        locator = Locator(tracker, group, clock)
        await locator.locate([A])
        tracker.untold = frozenset({A, B})
        clock.now += 2 * FRESH_SECONDS
        located = await locator.locate([A, B])
        assert [found.node.id for found in located[A]] == ["n1"]
        assert located[B] == ()
        assert len(tracker.calls) == 2
