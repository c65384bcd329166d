from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tests.chaos.soak_schedule import PARTS_DOWN_MAX, Fault, Group, Kind, down_at, plan, steps

GROUPS = (
    Group("holders", {f"h{number}": (Kind.KILL, Kind.FREEZE, Kind.SLOW) for number in range(4)}, down_max=2),
    Group("trackers", {"t0": (Kind.FREEZE,), "t1": (Kind.KILL,), "t2": (Kind.KILL,)}, excludes=("redis",)),
    Group("redis", {"redis": (Kind.KILL, Kind.FREEZE)}, excludes=("trackers",)),
)
SEEDS = st.integers(0, 2**32)
LENGTHS = st.floats(5, 400)


def overlapping(faults: tuple[Fault, ...]) -> list[list[Fault]]:
    """What is down at each moment at which something begins; there it is most."""
    return [down_at(fault.at, faults) for fault in faults]


@given(SEEDS, LENGTHS)
def test_the_same_seed_gives_the_same_faults(seed: int, seconds: float) -> None:
    assert plan(seed, seconds, GROUPS) == plan(seed, seconds, GROUPS)


@given(SEEDS, LENGTHS)
def test_never_too_many_parts_are_down_at_once(seed: int, seconds: float) -> None:
    for down in overlapping(plan(seed, seconds, GROUPS)):
        assert len(down) <= PARTS_DOWN_MAX
        for group in GROUPS:
            assert sum(fault.group == group.name for fault in down) <= group.down_max


@given(SEEDS, LENGTHS)
def test_a_part_suffers_one_thing_at_a_time_and_only_what_it_may(seed: int, seconds: float) -> None:
    faults = plan(seed, seconds, GROUPS)
    for down in overlapping(faults):
        assert len({fault.part for fault in down}) == len(down)
    allowed = {group.name: group.parts for group in GROUPS}
    assert all(fault.kind in allowed[fault.group][fault.part] for fault in faults)


@given(SEEDS, LENGTHS)
def test_groups_that_exclude_each_other_are_never_down_together(seed: int, seconds: float) -> None:
    for down in overlapping(plan(seed, seconds, GROUPS)):
        assert not {"trackers", "redis"} <= {fault.group for fault in down}


@given(SEEDS, LENGTHS)
def test_everything_is_healed_and_settled_at_the_end(seed: int, seconds: float) -> None:
    faults = plan(seed, seconds, GROUPS)
    assert not down_at(seconds, faults)
    broken: set[str] = set()
    for step in steps(faults):
        if step.heals:
            broken.remove(step.fault.part)
        else:
            assert step.fault.part not in broken
            broken.add(step.fault.part)
    assert not broken


@given(SEEDS)
def test_a_minute_is_eventful_and_every_kind_comes_up_in_an_hour(seed: int) -> None:
    assert len(plan(seed, 60, GROUPS)) >= 5
    hour = plan(seed, 3600, GROUPS)
    assert {fault.part for fault in hour} == {part for group in GROUPS for part in group.parts}
    assert {fault.kind for fault in hour} == {Kind.KILL, Kind.FREEZE, Kind.SLOW}
