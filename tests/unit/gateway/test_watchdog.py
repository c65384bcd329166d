"""Breaker, hedging, pace and running digest: when a peer is left alone, doubled, left, or contradicted."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stafett.common.digest import Digest
from stafett.gateway.breaker import OPEN_MAX_SECONDS, Breaker
from stafett.gateway.hedging import BUDGET_AT_START, BUDGET_MAX, BUDGET_SHARE, FLOOR_SECONDS, Hedging
from stafett.gateway.pace import MIB, STALL_MAX_SECONDS, Pace
from stafett.gateway.peer_book import FORGET_SECONDS, PeakEwma, PeerBook
from stafett.gateway.running_digest import AHEAD_PIECES, RunningDigest
from tests.unit.gateway.cluster import node


def test_a_failing_peer_is_left_alone_then_tried_by_one_stream_whose_end_decides() -> None:
    breaker = Breaker().failed(now=10.0)
    assert breaker.blocks(10.0)
    assert not breaker.blocks(10.6), "half-open"
    trying = breaker.opened()
    assert trying.blocks(10.6), "one stream tries, others stay away"
    assert not trying.abandoned().blocks(10.6), "a client that hung up has tried nothing"
    assert not trying.succeeded().blocks(10.6)
    again = trying.failed(10.7)
    assert again.blocks(10.7 + 0.9)
    assert not again.blocks(10.7 + 1.1), "twice as long as the first time"


@given(st.integers(1, 100))
def test_a_peer_gets_another_chance_within_bounded_time_however_often_it_failed(failures: int) -> None:
    breaker = Breaker()
    for _ in range(failures):
        breaker = breaker.failed(0.0)
    assert not breaker.blocks(OPEN_MAX_SECONDS)


@given(st.integers(0, 2000), st.lists(st.booleans(), max_size=3000))
def test_hedges_stay_within_their_budget(idle_requests: int, wishes: list[bool]) -> None:
    hedging = Hedging()
    for _ in range(idle_requests):
        hedging.note_request()
    taken = 0
    for wish in wishes:
        hedging.note_request()
        taken += wish and hedging.budget.take()
    assert taken <= max(BUDGET_AT_START, BUDGET_MAX) + BUDGET_SHARE * len(wishes)


@given(st.lists(st.floats(0.0001, 2), min_size=20, max_size=200))
def test_the_hedge_comes_at_the_95th_percentile_of_first_bytes_but_not_before_the_floor(times: list[float]) -> None:
    hedging = Hedging()
    for seconds in times:
        hedging.observe(seconds)
    delay = hedging.delay_seconds()
    assert delay >= FLOOR_SECONDS
    assert sum(seconds > delay for seconds in times) <= 0.05 * len(times) + 1


async def test_bytes_pass_while_what_the_client_had_before_is_still_being_read_but_not_without_limit() -> None:
    readable = asyncio.Event()

    async def had_before() -> AsyncGenerator[memoryview, None]:
        await readable.wait()
        yield memoryview(b"before ")

    running = RunningDigest(had_before())
    async with asyncio.timeout(10):
        for _ in range(AHEAD_PIECES):
            await running.add(memoryview(b"x"))
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await running.add(memoryview(b"x"))
    readable.set()
    assert not await running.contradicts(Digest.of(b"before " + b"x" * AHEAD_PIECES))
    assert await running.contradicts(Digest.of(b"x" * AHEAD_PIECES))
    running.close()


def test_a_stall_is_eight_usual_gaps_of_silence_within_bounds() -> None:
    brisk, slow, hopeless = Pace(1.0), Pace(1.0), Pace(1.0)
    for _ in range(50):
        brisk.add(MIB, 0.01)
        slow.add(MIB, 0.5)
        hopeless.add(MIB, 5.0)
    assert brisk.stall_seconds == 1.0
    assert slow.stall_seconds == pytest.approx(4.0, rel=0.01)
    assert hopeless.stall_seconds == STALL_MAX_SECONDS


def test_pace_is_judged_by_waiting_alone_once_it_lasted_a_window() -> None:
    pace = Pace(1.0)
    for _ in range(4):
        pace.add(MIB, 0.3)
    assert pace.take_window() is None
    pace.add(MIB, 0.3)
    assert pace.take_window() == pytest.approx(0.3)
    assert pace.take_window() is None, "a new window"
    assert pace.best_seconds_per_mib == math.inf
    pace.add(MIB, 3.0)
    assert pace.take_window() == pytest.approx(3.0)
    assert pace.best_seconds_per_mib == pytest.approx(0.3), "what it gave before"
    assert pace.seconds_per_mib == pytest.approx(0.75)


def test_bad_news_count_at_once_good_ones_slowly_and_old_ones_not_at_all() -> None:
    average = PeakEwma().observe(0.1, now=0.0).observe(1.0, now=1.0)
    assert average.value(1.0) == 1.0
    better = average.observe(0.1, now=2.0).value(2.0)
    assert better is not None
    assert 0.8 < better < 1.0
    assert average.value(1.0 + FORGET_SECONDS) is None


def test_a_new_session_of_a_node_starts_a_new_page() -> None:
    book = PeerBook(clock=lambda: 5.0)
    old = book.of(node("n1", epoch=1))
    old.open_stream()
    old.stream_failed(5.0)
    assert book.view(node("n1", epoch=1)).failing
    assert not book.view(node("n1", epoch=2)).failing
    assert book.of(node("n1", epoch=1)).epoch == 2, "an old description does not bring the old page back"
