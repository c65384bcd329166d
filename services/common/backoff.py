"""How long to wait before trying again."""

from __future__ import annotations

import random


def backoff_seconds(attempt: int, *, base: float = 0.1, cap: float = 5.0, rng: random.Random) -> float:
    """Exponential back-off with full jitter (AWS architecture blog, "Exponential Backoff And Jitter").

    `attempt` counts from 0; the result lies between `base / 2` and `cap` seconds.
    """
    ceiling = min(cap, base * 2 ** min(attempt, 30))
    return max(base / 2, rng.uniform(0, ceiling))
