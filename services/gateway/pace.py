"""How a stream runs: judged by the time spent waiting for it alone, so that a slow client accuses nobody. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass

GAP_WEIGHT = 0.2
STALL_GAPS = 8.0
STALL_MAX_SECONDS = 10.0
WINDOW_SECONDS = 1.5
FASTEST_SECONDS_PER_MIB = 0.001
"""Where the client is the slow one, frames are there at once and tell nothing of the holder."""
MIB = 1024 * 1024


@dataclass
class Pace:
    """Counts a stream's bytes and the seconds waited for them. No silence below `floor_seconds` is a stall."""

    floor_seconds: float
    size_bytes: int = 0
    waited_seconds: float = 0.0
    best_seconds_per_mib: float = math.inf
    """Of all windows but the last."""
    _gap: float = 0.0
    _window_bytes: int = 0
    _window_seconds: float = 0.0
    _last: float = math.inf

    @property
    def stall_seconds(self) -> float:
        """How long a silence may last: eight times the usual gap between frames, within bounds."""
        return max(self.floor_seconds, min(STALL_MAX_SECONDS, STALL_GAPS * self._gap))

    @property
    def seconds_per_mib(self) -> float | None:
        """Pace of the whole stream; None while a quarter MiB has not come."""
        if self.size_bytes < MIB // 4:
            return None
        return max(FASTEST_SECONDS_PER_MIB, self.waited_seconds / self.size_bytes * MIB)

    def add(self, size_bytes: int, waited_seconds: float) -> None:
        """Count a data frame."""
        self._gap += GAP_WEIGHT * (waited_seconds - self._gap)
        self.size_bytes += size_bytes
        self.waited_seconds += waited_seconds
        self._window_bytes += size_bytes
        self._window_seconds += waited_seconds

    def take_window(self) -> float | None:
        """Tell the seconds per MiB since the last call; None until 1.5 s were spent waiting."""
        if self._window_seconds < WINDOW_SECONDS:
            return None
        pace = self._window_seconds / max(1, self._window_bytes) * MIB
        self.best_seconds_per_mib, self._last = min(self.best_seconds_per_mib, self._last), pace
        self._window_bytes, self._window_seconds = 0, 0.0
        return pace
