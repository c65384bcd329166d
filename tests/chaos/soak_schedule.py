"""Decides which part of a cluster suffers what and when, from a seed: pure, so that a failed soak can be repeated."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

SETTLE_SECONDS = 6.0
"""A healed part counts as down for so long still: it starts, registers and announces what it holds."""
QUIET_END_SECONDS = 3.0
PAUSE_SECONDS = (0.5, 2.5)
PARTS_DOWN_MAX = 3


class Kind(Enum):
    """What can happen to a part."""

    KILL = "killed, and started again later"
    FREEZE = "stopped, and continued later"
    RESTART = "ended by SIGTERM, and started again"
    SLOW = "its bytes pass slowly"
    REFUSE = "its connections are reset, new ones refused"
    CUT = "its connections are reset once"
    SWALLOW = "its bytes vanish on the way"
    CORRUPT = "one of its blobs is wrong on its disk"


LASTS_SECONDS: Mapping[Kind, tuple[float, float]] = {
    Kind.KILL: (0.5, 6.0),
    Kind.FREEZE: (0.3, 6.0),
    Kind.RESTART: (0.1, 2.0),
    Kind.SLOW: (3.0, 6.0),
    Kind.REFUSE: (0.5, 4.0),
    Kind.CUT: (0.1, 0.1),
    Kind.SWALLOW: (0.5, 5.0),
    Kind.CORRUPT: (3.0, 6.0),
}


@dataclass(frozen=True, slots=True)
class Group:
    """Parts of which at most `down_max` may be down at once; `excludes` are groups that must be whole meanwhile."""

    name: str
    parts: Mapping[str, Sequence[Kind]]
    down_max: int = 1
    excludes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Fault:
    """One part is down from `at` to `heals_at`, in seconds from the start."""

    at: float
    group: str
    part: str
    kind: Kind
    heals_at: float

    @property
    def settled_at(self) -> float:
        """When the part counts as whole again."""
        return self.heals_at + SETTLE_SECONDS


@dataclass(frozen=True, slots=True)
class Step:
    """A fault begins, or ends (`heals`)."""

    at: float
    fault: Fault
    heals: bool


def plan(seed: int, seconds: float, groups: Sequence[Group]) -> tuple[Fault, ...]:
    """Plan faults for so many seconds; all of them are healed, and settled, before the end."""
    rng = random.Random(seed)
    faults: list[Fault] = []
    now = rng.uniform(*PAUSE_SECONDS)
    while now + SETTLE_SECONDS + QUIET_END_SECONDS < seconds:
        choices = list(_possible(now, faults, groups))
        if choices:
            what = rng.choice(list(dict.fromkeys((group.name, kind) for group, _, kind in choices)))
            group, part, kind = rng.choice([each for each in choices if (each[0].name, each[2]) == what])
            fault = Fault(now, group.name, part, kind, now + rng.uniform(*LASTS_SECONDS[kind]))
            if fault.settled_at + QUIET_END_SECONDS <= seconds:
                faults.append(fault)
        now += rng.uniform(*PAUSE_SECONDS)
    return tuple(faults)


def steps(faults: Sequence[Fault]) -> tuple[Step, ...]:
    """Order all beginnings and ends by time."""
    both = [step for fault in faults for step in (Step(fault.at, fault, False), Step(fault.heals_at, fault, True))]
    return tuple(sorted(both, key=lambda step: (step.at, not step.heals)))


def down_at(moment: float, faults: Sequence[Fault]) -> list[Fault]:
    """Faults that are on, or not yet settled, at that moment."""
    return [fault for fault in faults if fault.at <= moment < fault.settled_at]


def _possible(moment: float, faults: Sequence[Fault], groups: Sequence[Group]) -> Iterator[tuple[Group, str, Kind]]:
    down = down_at(moment, faults)
    down_groups = [fault.group for fault in down]
    down_parts = {fault.part for fault in down}
    if len(down) >= PARTS_DOWN_MAX:
        return
    for group in groups:
        if down_groups.count(group.name) >= group.down_max or set(group.excludes) & set(down_groups):
            continue
        for part, kinds in group.parts.items():
            if part not in down_parts:
                yield from ((group, part, kind) for kind in kinds)
