"""One stream from one holder: its bytes from an offset on, watched for silence. Whom to ask next is the relay's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass

from opentelemetry import trace

from stafett.common.blob_codec import BlobInfo, Waiting
from stafett.common.digest import Digest
from stafett.common.errors import Unavailable
from stafett.gateway import pull_trace
from stafett.gateway.pace import Pace
from stafett.gateway.peer_book import PeerBook
from stafett.gateway.ports import PeerReader
from stafett.gateway.selection import Candidate

STALLED = "stalled"
WAITED = "nothing new"
"""Why a parent is left that lives, but itself gets no bytes."""
WAIT_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Wanted:
    """`length` bytes from `offset` of a blob that must have `size_bytes`."""

    digest: Digest
    size_bytes: int
    offset: int
    length: int


class Stream:
    """An asynchronous iterator of pieces, on its peer's page while it is open. Always `aclose` it.

    `unwanted` is asked while the peer has nothing new: whether to leave it at once.
    """

    def __init__(
        self,
        candidate: Candidate,
        wanted: Wanted,
        book: PeerBook,
        reader: PeerReader,
        stall_floor_seconds: float,
        unwanted: Callable[[], bool] = lambda: False,
        attempt: int = 1,
    ) -> None:
        self.candidate = candidate
        self.span = pull_trace.attempt(candidate, wanted.digest, wanted.size_bytes, wanted.offset, attempt)
        self.pace = Pace(stall_floor_seconds)
        self.first_byte_seconds: float | None = None
        self._wanted = wanted
        self._book = book
        self._page = book.of(candidate.node)
        self._reader = reader
        self._unwanted = unwanted
        self._opened_at = book.clock()
        self._received_bytes = 0
        self._pieces = self._run()

    @property
    def age_seconds(self) -> float:
        """Time since the stream was asked for."""
        return self._book.clock() - self._opened_at

    def __aiter__(self) -> Stream:
        return self

    async def __anext__(self) -> memoryview:
        """Return the next piece; silence, another size, a wrong length are failures.

        Raises:
            Unavailable, and what `ports.PeerReader` raises.
        """
        return await anext(self._pieces)

    async def first(self) -> memoryview | None:
        """Return the first piece, None when there is none."""
        return await anext(self._pieces, None)

    async def aclose(self) -> None:
        """End the stream."""
        try:
            await self._pieces.aclose()
        finally:
            if self.span.is_recording():
                self.span.set_attribute("stafett.received", self._received_bytes)
                self.span.end()

    def lost_race(self) -> None:
        """Note that its first byte has not come by now, when another holder's has."""
        self.span.set_attribute("stafett.reason", "lost_race")
        self._page.first_byte_missing(self.age_seconds, self._book.clock())

    async def _run(self) -> AsyncGenerator[memoryview, None]:
        self._page.open_stream()
        try:
            async with aclosing(self._watched()) as pieces:
                async for piece in pieces:
                    yield piece
            self._page.stream_succeeded()
        except TimeoutError as error:
            self._page.stream_failed(self._book.clock())
            self.span.add_event("stafett.stall", {"stafett.silent_seconds": self.pace.stall_seconds})
            raise Unavailable(self.candidate.node.id, STALLED) from error
        except Unavailable as error:
            if error.reason != WAITED:
                self._page.stream_failed(self._book.clock())
            raise
        finally:
            self._page.close_stream(self.pace.seconds_per_mib, self._book.clock())

    async def _watched(self) -> AsyncGenerator[memoryview, None]:
        wanted, node_id = self._wanted, self.candidate.node.id
        left = wanted.length
        follow = self.candidate.growing
        with trace.use_span(self.span):  # the call is made here; the span is not current when this generator yields
            reading = self._reader.read(self.candidate.node, wanted.digest, wanted.offset, wanted.length, follow=follow)
        async with aclosing(reading) as frames:
            asked_at = self._book.clock()
            while left > 0:
                async with asyncio.timeout(self.pace.stall_seconds):
                    frame = await anext(frames, None)
                if frame is None:
                    raise Unavailable(node_id, "the stream ended early")
                if isinstance(frame, BlobInfo):
                    if frame.size_bytes != wanted.size_bytes and (frame.complete or frame.size_bytes):
                        raise Unavailable(node_id, f"it states {frame.size_bytes} bytes, others {wanted.size_bytes}")
                elif isinstance(frame, Waiting):
                    if self._unwanted() or self._book.clock() - asked_at > WAIT_SECONDS:
                        raise Unavailable(node_id, WAITED)
                else:
                    left -= len(frame)
                    if left < 0:
                        raise Unavailable(node_id, "it sent more than was asked for")
                    self._note(len(frame), self._book.clock() - asked_at)
                    yield memoryview(frame)
                    asked_at = self._book.clock()

    def _note(self, size_bytes: int, waited_seconds: float) -> None:
        self._received_bytes += size_bytes
        if self.first_byte_seconds is None:
            self.first_byte_seconds = self.age_seconds
            self._page.first_byte_came(self.age_seconds, self._book.clock())
        else:
            self.pace.add(size_bytes, waited_seconds)
