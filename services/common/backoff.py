"""How long to wait before trying again."""

from __future__ import annotations

import random

BASE_SECONDS = 0.1


def backoff_seconds(attempt: int, *, cap: float, rng: random.Random) -> float:
    """Exponential back-off with full jitter (AWS architecture blog, "Exponential Backoff And Jitter").

    `attempt` counts from 0; the result lies between `BASE_SECONDS / 2` and `cap` seconds.
    """
    ceiling = min(cap, BASE_SECONDS * 2 ** min(attempt, 30))
    return max(BASE_SECONDS / 2, rng.uniform(0, ceiling))
