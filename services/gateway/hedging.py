"""When a second holder is asked because the first byte is late (Dean and Barroso, The Tail at Scale, 2013). Pure.

At the 95th percentile of what first bytes took lately, and only while hedges are at most one in twenty requests.
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


@dataclass
class Hedging:
    """Delay and budget of one gateway's hedges."""

    _times: deque[float] = field(default_factory=lambda: deque(maxlen=SAMPLES_MAX))
    _budget: float = BUDGET_AT_START

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
        self._budget = min(BUDGET_MAX, self._budget + BUDGET_SHARE)

    def take(self) -> bool:
        """Spend one hedge, if the budget has it."""
        if self._budget < 1.0:
            return False
        self._budget -= 1.0
        return True
