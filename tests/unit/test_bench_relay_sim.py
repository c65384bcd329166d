"""The simulator spreads a blob to everybody, and following is what makes it quick."""

from __future__ import annotations

import pytest

from bench.relay_sim import GIB, Case, Simulation

CASE = Case("small", 30, GIB // 4)


def test_everybody_gets_it_and_upstream_is_asked_once() -> None:
    result = Simulation(CASE).run()
    assert result.unfinished == 0
    assert result.upstream_copies == pytest.approx(1.0, abs=0.01)
    assert result.cross_zone_copies == pytest.approx(1.0, abs=0.01)


def test_without_following_it_takes_several_times_as_long() -> None:
    assert Simulation(CASE, follow=False).run().completion_seconds > 3 * Simulation(CASE).run().completion_seconds


def test_hosts_that_fail_in_the_middle_hold_nobody_up_for_ever() -> None:
    result = Simulation(Case("failing", 30, GIB // 4, failing=0.2), seed=3).run()
    assert result.unfinished == 0
    assert result.upstream_copies < 1.5
