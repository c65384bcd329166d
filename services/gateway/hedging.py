"""When a second holder is asked because the first byte is late (Dean and Barroso, The Tail at Scale, 2013). Pure.

At the 95th percentile of what first bytes took lately, and only while hedges are at most one in twenty requests. One
that is so late that the client may be told 404 has a budget of its own, of one in four.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

FLOOR_SECONDS = 0.05
UNKNOWN_SECONDS = 0.2
"""Delay while too little has been seen."""
SAMPLES_MIN = 10
SAMPLES_MAX = 256
QUANTILE = 0.95
BUDGET_SHARE = 0.05
BUDGET_MAX = 10.0
BUDGET_AT_START = 3.0
OVERDUE_SHARE = 0.25
OVERDUE_MAX = 30.0
OVERDUE_AT_START = 12.0
"""Enough for all who read from a host at the moment when it freezes, until they know it."""


@dataclass
class Budget:
    """What may be asked on top of ordinary requests, each of which earns a share."""

    share: float
    most: float
    left: float

    def earn(self) -> None:
        """One ordinary request."""
        self.left = min(self.most, self.left + self.share)

    def take(self) -> bool:
        """Spend one, if there is one."""
        if self.left < 1.0:
            return False
        self.left -= 1.0
        return True


@dataclass
class Hedging:
    """Delay and budgets of one gateway's hedges."""

    _times: deque[float] = field(default_factory=lambda: deque(maxlen=SAMPLES_MAX))
    budget: Budget = field(default_factory=lambda: Budget(BUDGET_SHARE, BUDGET_MAX, BUDGET_AT_START))
    overdue: Budget = field(default_factory=lambda: Budget(OVERDUE_SHARE, OVERDUE_MAX, OVERDUE_AT_START))

    def observe(self, seconds: float) -> None:
        """Note what a first byte took; of a stream that lost the race, what it had taken until then."""
        self._times.append(seconds)

    def delay_seconds(self) -> float:
        """Tell after what time a second holder is asked."""
        if len(self._times) < SAMPLES_MIN:
            return UNKNOWN_SECONDS
        return max(FLOOR_SECONDS, sorted(self._times)[int(len(self._times) * QUANTILE)])

    def note_request(self) -> None:
        """Earn a share of a hedge."""
        self.budget.earn()
        self.overdue.earn()
