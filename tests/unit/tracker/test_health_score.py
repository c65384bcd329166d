"""How a node is rated."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stafett.common.cluster import HealthSample
from stafett.tracker.health_score import DEFAULT_WEIGHTS, FORGIVING_SECONDS, Experience, Vitals, score

FIT = HealthSample(0, 64, 0.0, 500, 1000, 0, 0, 86_400.0)
share = st.floats(0, 1)
samples = st.builds(
    HealthSample,
    st.integers(0, 64),
    st.integers(0, 64),
    share,
    st.integers(0, 1000),
    st.sampled_from([0, 1000]),
    st.integers(0, 100),
    st.just(0),
    st.floats(0, 1e6),
    st.booleans(),
)
experiences = st.builds(Experience, share, share, st.floats(0, 10), st.floats(0, 10), st.floats(0, 1e6))
vitals = st.builds(Vitals, st.floats(-1, 1), samples | st.none(), experiences | st.none(), st.integers(0, 100))


@given(vitals, st.floats(0, 100))
def test_scores_and_their_components_are_between_0_and_1(known: Vitals, usual: float) -> None:
    rated = score(known, usual, DEFAULT_WEIGHTS)
    assert 0 < rated.total <= 1
    assert rated.components.keys() == DEFAULT_WEIGHTS.keys()
    assert all(0 <= value <= 1 for value in rated.components.values())


def test_a_fit_node_that_nothing_bad_is_known_of_is_nearly_perfect() -> None:
    assert score(Vitals(1.0, FIT), 0.0, DEFAULT_WEIGHTS).total > 0.99


@pytest.mark.parametrize(
    ("component", "worse"),
    [
        ("heartbeat", {"lease_left": 0.2}),
        ("load", {"sample": replace(FIT, active_streams=60)}),
        ("load", {"sample": replace(FIT, cpu_busy=1.0)}),
        ("disk", {"sample": replace(FIT, disk_free_bytes=10)}),
        ("disk", {"sample": replace(FIT, disk_errors=10)}),
        ("disk", {"sample": replace(FIT, store_available=False)}),
        ("outcomes", {"experience": Experience(success=0.3)}),
        ("load", {"experience": Experience(room=0.3)}),
        ("speed", {"experience": Experience(seconds_per_mib=0.5)}),
        ("speed", {"experience": Experience(first_byte_seconds=1.0, seconds_per_mib=0.05)}),
        ("stability", {"sample": replace(FIT, uptime_seconds=0)}),
        ("stability", {"flaps": 3}),
    ],
)
def test_each_component_falls_for_its_own_reason_and_takes_the_score_with_it(
    component: str, worse: dict[str, object]
) -> None:
    fit = Vitals(1.0, FIT, Experience(first_byte_seconds=0.01, seconds_per_mib=0.05))
    good = score(fit, 0.41, DEFAULT_WEIGHTS)
    bad = score(replace(fit, **worse), 0.41, DEFAULT_WEIGHTS)  # type: ignore[arg-type]
    assert bad.components[component] < 0.7 * good.components[component]
    assert bad.total < good.total
    assert {name for name in DEFAULT_WEIGHTS if bad.components[name] < good.components[name]} == {component}


def test_a_component_without_weight_does_not_count() -> None:
    weights = {**DEFAULT_WEIGHTS, "load": 0.0}
    assert score(Vitals(1.0, replace(FIT, active_streams=64)), 0.0, weights).total > 0.99


def test_failures_are_forgiven_with_time_so_that_nobody_is_avoided_for_ever() -> None:
    def outcomes(age: float) -> float:
        return score(Vitals(1.0, FIT, Experience(0.1, age_seconds=age)), 0.0, DEFAULT_WEIGHTS).components["outcomes"]

    assert outcomes(0) == pytest.approx(0.1)
    assert outcomes(5 * FORGIVING_SECONDS) > 0.99
