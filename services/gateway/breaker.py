"""When a peer that failed may be asked again: a circuit breaker as a value. Pure; the caller brings the time.

Closed: asked as usual. Open: left alone, longer after each further failure. Half-open: one stream tries, and how it
ends decides (Nygard, Release It!, 2007).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

OPEN_SECONDS = 0.5
OPEN_MAX_SECONDS = 15.0


@dataclass(frozen=True, slots=True)
class Breaker:
    """State of one peer's breaker; `retry_at` is in the caller's clock, in seconds."""

    failures: int = 0
    retry_at: float = 0.0
    trying: bool = False

    def blocks(self, now: float) -> bool:
        """Tell whether the peer had better be left alone."""
        return self.failures > 0 and (self.trying or now < self.retry_at)

    def opened(self) -> Breaker:
        """A stream was opened: in a breaker that is not closed it is the one that tries."""
        return replace(self, trying=self.failures > 0)

    def abandoned(self) -> Breaker:
        """The stream ended without a verdict, as when the client hung up."""
        return replace(self, trying=False)

    def succeeded(self) -> Breaker:
        """A stream worked: closed."""
        return Breaker()

    def failed(self, now: float) -> Breaker:
        """A stream failed: open, for twice as long as the last time; several that fail together count once."""
        if self.failures and now < self.retry_at:
            return replace(self, trying=False)
        seconds = min(OPEN_MAX_SECONDS, OPEN_SECONDS * 2.0 ** min(self.failures, 10))
        return Breaker(self.failures + 1, now + seconds)
