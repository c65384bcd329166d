"""How many streams at once, how fast, in frames of which size. All pure but `Throttle`, which adds clock and sleep."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from stafett.common.blob_codec import CHUNK_BYTES
from stafett.common.errors import Draining, Overloaded

FRAME_MIN_BYTES = 16 * 1024
FRAME_FOLLOWED_BYTES = 128 * 1024
"""At most so much for followers: many of their streams share a link, and each must see a frame come often."""
FRAME_SLOW_SECONDS = 0.2
FRAME_QUICK_SECONDS = 0.05


@dataclass
class StreamSlots:
    """A fixed number of places for streams, none while draining."""

    limit: int
    taken: int = 0
    draining: bool = False
    leaving: bool = False
    refused_full: int = 0
    refused_draining: int = 0
    idle: asyncio.Event = field(default_factory=asyncio.Event)
    """Set while no stream runs."""

    def __post_init__(self) -> None:
        self.idle.set()

    def order_drain(self, draining: bool) -> None:
        """Follow an operator's wish; a node that is leaving does not come back."""
        self.draining = draining or self.leaving

    def leave(self) -> None:
        """Take no new streams until the end."""
        self.leaving = self.draining = True

    @contextmanager
    def take(self) -> Iterator[None]:
        """Hold a place.

        Raises:
            Overloaded: if all are taken. Draining: if the node is about to leave.
        """
        if self.draining:
            self.refused_draining += 1
            raise Draining
        if self.taken >= self.limit:
            self.refused_full += 1
            raise Overloaded("streams", self.limit)
        self.taken += 1
        self.idle.clear()
        try:
            yield
        finally:
            self.taken -= 1
            if self.taken == 0:
                self.idle.set()


@dataclass
class TokenBucket:
    """Lets `rate` bytes per second pass, and a burst of `capacity` bytes after a rest."""

    rate: float
    capacity: float
    tokens: float
    filled_at: float

    def take(self, size_bytes: int, now: float) -> float:
        """Take tokens, on credit if need be; return the seconds to wait before sending."""
        self.tokens = min(self.capacity, self.tokens + (now - self.filled_at) * self.rate)
        self.filled_at = now
        self.tokens -= size_bytes
        return max(0.0, -self.tokens / self.rate)


@dataclass
class FrameSize:
    """How many bytes go into the next frame of a stream: few where they leave slowly.

    A reader takes silence for a stall, and sees a frame only when the whole of it is there: on a link that many share a
    mebibyte can take seconds.
    """

    size_bytes: int = 128 * 1024
    max_bytes: int = CHUNK_BYTES

    def sent(self, size_bytes: int, seconds: float) -> None:
        """Learn how long a frame took to leave."""
        if seconds > FRAME_SLOW_SECONDS:
            self.size_bytes = max(FRAME_MIN_BYTES, min(size_bytes, self.size_bytes) // 2)
        elif seconds < FRAME_QUICK_SECONDS:
            self.size_bytes = min(self.max_bytes, self.size_bytes * 2)


class Throttle:
    """An upload limit shared by all streams; 0 means none."""

    def __init__(self, bytes_per_second: int) -> None:
        burst = bytes_per_second / 10
        self._bucket = TokenBucket(bytes_per_second, burst, burst, time.monotonic()) if bytes_per_second else None

    async def pass_(self, size_bytes: int) -> None:
        """Wait until so many bytes may be sent."""
        if self._bucket is not None and (seconds := self._bucket.take(size_bytes, time.monotonic())) > 0:
            await asyncio.sleep(seconds)
