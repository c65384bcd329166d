from __future__ import annotations

import hypothesis
from hypothesis import strategies as st

from stafett.common.cluster import NodeState
from stafett.tracker.liveness import ABSENT, Event, Judge, after, moves

states = st.sampled_from(list(NodeState))
events = st.sampled_from(list(Event))
registrations = (Event.STARTED, Event.RESUMED)


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
    assert judge.may_judge(10.0, 0.0)
    judge = judge.missed_scan(10.0)
    assert not judge.may_judge(13.9, 0.0)
    assert judge.may_judge(14.0, 0.0)


def test_a_replica_whose_loop_lags_judges_nobody() -> None:
    assert not Judge(4.0, 0.0).may_judge(10.0, 0.21)
    assert Judge(4.0, 0.0).may_judge(10.0, 0.19)
