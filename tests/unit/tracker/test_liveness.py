from __future__ import annotations

import hypothesis
import pytest
from hypothesis import strategies as st

from stafett.common.cluster import NodeState
from stafett.tracker.liveness import ABSENT, Event, Judge, after, mass_failure, moves

states = st.sampled_from(list(NodeState))
events = st.sampled_from(list(Event))
registrations = (Event.STARTED, Event.RESUMED, Event.RESUMED_DRAINED)


@hypothesis.given(states, events)
def test_nothing_but_a_registration_brings_a_node_back(state: NodeState, event: Event) -> None:
    if event not in registrations:
        assert after(NodeState.DOWN, event) is NodeState.DOWN
        assert after(None, event) is None
    assert after(state, Event.STARTED) is NodeState.READY


@hypothesis.given(states)
def test_a_lease_that_is_gone_means_down(state: NodeState) -> None:
    assert after(state, Event.LEASE_EXPIRED) is NodeState.DOWN
    assert after(state, Event.LEFT) is NodeState.DOWN


@hypothesis.given(st.lists(events))
def test_a_draining_node_is_ready_again_only_by_its_own_word_or_a_new_process(history: list[Event]) -> None:
    state: NodeState | None = NodeState.DRAINING
    for event in history:
        before, state = state, after(state, event)
        if before is NodeState.DRAINING and state is NodeState.READY:
            assert event in (Event.STARTED, Event.DRAIN_REVOKED)


@hypothesis.given(states | st.none(), events)
def test_the_scripts_are_told_the_same_moves(state: NodeState | None, event: Event) -> None:
    table = dict(pair.split("=") for pair in moves(event).split(","))
    expected = after(state, event)
    name = state.value if state else ABSENT
    assert table.get(name, name) == (expected.value if expected else ABSENT)


def test_a_replica_that_was_blind_shows_mercy_for_the_time_of_a_lease() -> None:
    judge = Judge(4.0, 0.0)
    assert judge.may_judge(10.0)
    judge = judge.missed_scan(10.0)
    assert not judge.may_judge(13.9)
    assert judge.may_judge(14.0)


@pytest.mark.parametrize(("lag", "blind"), [(0.0, 0.0), (0.2, 0.0), (0.25, 1.0), (0.5, 2.0), (1.0, 4.0), (60.0, 4.0)])
def test_a_replica_whose_loop_lags_judges_nobody_for_a_while(lag: float, blind: float) -> None:
    judge = Judge(4.0, 0.0).lagged(10.0, lag)
    assert judge.may_judge(10.0 + blind)
    assert not blind or not judge.may_judge(9.9 + blind)


def test_a_short_lag_does_not_end_a_longer_mercy() -> None:
    assert not Judge(4.0, 0.0).missed_scan(10.0).lagged(10.5, 0.3).may_judge(13.9)


@pytest.mark.parametrize(
    ("known", "recent", "now", "mass"),
    [
        (0, 0, 0, False),
        (3, 0, 3, False),  # all of a small cluster: fewer than four
        (4, 0, 4, True),
        (10, 0, 3, False),
        (13, 0, 4, True),
        (14, 0, 4, False),  # four, but 28.6 %
        (100, 0, 30, False),
        (100, 0, 31, True),
        (100, 30, 1, True),  # together within ten seconds
        (100, 31, 0, False),  # nobody would fall now: nothing to hold back
        (5000, 0, 1500, False),
        (5000, 0, 1501, True),
    ],
)
def test_a_mass_failure_is_more_than_a_share_and_a_few(known: int, recent: int, now: int, mass: bool) -> None:
    assert mass_failure(known, recent, now) is mass
