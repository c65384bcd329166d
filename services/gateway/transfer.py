"""A running transfer: the bytes of one blob on their way to one client, whoever they come from.

It goes on at the same byte with the next source if one breaks, stalls, crawls or lies about the size, and asks a second
one when the first byte is late. Whole blobs are hashed, and rests of blobs together with what the client has of them;
the last piece is held back until the digest is right.
Who is next is told by `sources`, one holder's bytes are `stream`'s.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from functools import partial

import structlog

from stafett.common.digest import Digest
from stafett.common.errors import (
    BlobUnknown,
    CorruptContent,
    Draining,
    Overloaded,
    RangeUnsatisfiable,
    StafettError,
    Unavailable,
)
from stafett.gateway import pull_trace
from stafett.gateway.byte_range import Span
from stafett.gateway.metrics import FailoverReason
from stafett.gateway.relay import Relay
from stafett.gateway.running_digest import RunningDigest
from stafett.gateway.selection import Candidate, worth_leaving
from stafett.gateway.sources import RankedSources, Sources, waited
from stafett.gateway.stream import STALLED, Stream, Wanted

log = structlog.get_logger()

SLOW_SWITCHES_MAX = 3
OVERDUE_SECONDS = 0.4
"""After so long without a first byte one more holder is asked each time, whoever is left, out of a budget of its own: a
client that is told 404 after `first_piece_seconds` costs upstream more. Four are asked until then."""
VERDICTS_SECONDS = 5.0
"""A response whose bytes are wrong ends when those who sent them have read their copies again, or after so long: then
the client's next attempt is served by the honest ones."""
_REASONS: dict[type[StafettError], FailoverReason] = {
    Unavailable: "broken",
    Overloaded: "full",
    BlobUnknown: "gone",
    Draining: "draining",
    RangeUnsatisfiable: "other_size",
}
_HOLDER_FAILED = tuple(_REASONS)

_Race = dict[asyncio.Task[memoryview | None], Stream]
"""Streams whose first piece is awaited."""


class Transfer:
    """One client's bytes. `served_by` is the candidate whose bytes are coming now.

    `spoilt` tells that the client was given bytes of which some were wrong, as the digest has shown since.
    """

    def __init__(
        self,
        relay: Relay,
        digest: Digest,
        size_bytes: int,
        span: Span,
        sources: Sources | None = None,
        prefix: AsyncGenerator[memoryview, None] | None = None,
    ) -> None:
        self._relay = relay
        self._sources = sources or RankedSources(relay, digest)
        self._digest = digest
        self._size_bytes = size_bytes
        self._position = self._sources.position = span.offset
        self._end = span.offset + span.length
        self._running = RunningDigest(prefix) if prefix or span.length == size_bytes else None
        self._all_from_here = prefix is None
        self._contributors: dict[str, Candidate] = {}
        self._slow_switches = 0
        self._attempts = 0
        self.served_by: Candidate | None = None
        self.spoilt = False

    async def pieces(self) -> AsyncGenerator[memoryview, None]:
        """Yield the bytes in order; the next holder takes over wherever one stops.

        Raises:
            BlobUnknown: when no holder is left. CorruptContent: when the digest is wrong; the last piece is not
            yielded then, and nobody who contributed is asked again for it.
        """
        try:
            while self._position < self._end:
                stream, piece = await self._open()
                self.served_by = stream.candidate
                async with aclosing(stream):
                    try:
                        slow = False
                        while piece is not None:
                            await self._account(stream, piece)
                            yield piece
                            slow = self._crawls(stream)
                            if slow or self._sources.wants_to_leave(stream.candidate):
                                break
                            piece = await anext(stream, None)
                        self._relay.outcomes.ended(stream, slow=slow)
                    except _HOLDER_FAILED as error:
                        self._note_failure(stream, error)
        finally:
            if self._running is not None:
                self._running.close()
            await self._sources.close(finished=self._position == self._end and not self.spoilt)

    async def first_piece(self, pieces: AsyncGenerator[memoryview, None]) -> memoryview | None:
        """Wait for the first bytes, which decide between 200 and 404; None when the span is empty.

        Raises:
            BlobUnknown: if they do not come in time, or from anybody.
        """
        try:
            async with asyncio.timeout(self._sources.first_piece_seconds):
                return await anext(pieces, None)
        except TimeoutError as error:
            raise BlobUnknown(self._digest) from error

    async def _open(self) -> tuple[Stream, memoryview | None]:
        """Open a stream, and another one when its first piece is late; who sends first stays.

        Raises:
            BlobUnknown: when no holder is left.
        """
        hedging = self._relay.hedging
        hedging.note_request()
        race: _Race = {}
        hedged = False
        try:
            while True:
                if not race:
                    self._start(await self._sources.next(), race)
                delay = OVERDUE_SECONDS if hedged else min(OVERDUE_SECONDS, hedging.delay_seconds())
                done, _ = await asyncio.wait(race, timeout=delay, return_when=asyncio.FIRST_COMPLETED)
                if not done:
                    self._hedge(race, overdue=delay == OVERDUE_SECONDS)
                    hedged = True
                for task in done:
                    stream = race.pop(task)
                    try:
                        piece = task.result()
                    except _HOLDER_FAILED as error:
                        self._note_failure(stream, error)
                        await stream.aclose()
                        continue
                    if not stream.candidate.growing:
                        hedging.observe(max(each.age_seconds for each in (stream, *race.values())))
                    await self._drop_losers(race, stream)
                    return stream, piece
        finally:
            await _close(race)

    async def _drop_losers(self, race: _Race, winner: Stream) -> None:
        """Close who lost; if the client hangs up meanwhile, the winner too."""
        for loser in race.values():
            loser.lost_race()
        try:
            await _close(race)
        except BaseException:
            await winner.aclose()
            raise
        race.clear()

    def _start(self, candidate: Candidate, race: _Race) -> None:
        wanted = Wanted(self._digest, self._size_bytes, self._position, self._end - self._position)
        self._attempts += 1
        relay, unwanted = self._relay, partial(self._sources.wants_to_leave, candidate)
        stream = Stream(
            candidate, wanted, relay.book, relay.reader, relay.stall_timeout_seconds, unwanted, self._attempts
        )
        race[asyncio.ensure_future(stream.first())] = stream

    def _hedge(self, race: _Race, *, overdue: bool) -> None:
        """Ask one more holder, never the same, if there is one and the budget allows it."""
        late = list(race.values())
        if late[-1].candidate.growing:
            return  # it has nothing yet
        if overdue:
            for stream in late:
                self._sources.left(stream.candidate, None)
        other = self._sources.other_than(late[-1].candidate)
        budget = self._relay.hedging.overdue if overdue else self._relay.hedging.budget
        if other is not None and (overdue or not other.failing) and budget.take():
            self._relay.metrics.count_hedge()
            pull_trace.event("stafett.hedge", holder=other.node.id, reason="overdue" if overdue else "late")
            self._start(other, race)

    def _crawls(self, stream: Stream) -> bool:
        """Leave a stream that gives far less than another holder should; it may be asked again later."""
        pace = stream.pace.take_window()
        if pace is None or self._slow_switches >= SLOW_SWITCHES_MAX or self._position >= self._end:
            return False
        other = self._sources.other_than(stream.candidate)
        best, streams = stream.pace.best_seconds_per_mib, self._relay.book.streams_open
        if other is None or not worth_leaving(stream.candidate, pace, best, other, streams):
            return False
        self._slow_switches += 1
        self._sources.left(stream.candidate, None)
        self._count_failover(stream, "slow", f"it takes {pace:.3f} s per MiB")
        return True

    async def _account(self, stream: Stream, piece: memoryview) -> None:
        """Count and hash a piece; the last one only passes with the right digest."""
        self._contributors[stream.candidate.node.id] = stream.candidate
        self._position = self._sources.position = self._position + len(piece)
        if self._running is None:
            return
        await self._running.add(piece)
        if self._position == self._end and await self._running.contradicts(self._digest):
            self.spoilt = self._end > len(piece)
            await self._blame()
            raise CorruptContent(self._digest, ", ".join(sorted(self._contributors)))

    async def _blame(self) -> None:
        """Put all who had a part in wrong bytes under quarantine, and hear them if it is not clear who lied."""
        relay, givers = self._relay, [each.node for each in self._contributors.values()]
        log.error("wrong_bytes", digest=str(self._digest), nodes=sorted(self._contributors))
        pull_trace.failed("stafett.wrong_bytes", holders=sorted(self._contributors))
        passed_on = any(each.growing for each in self._contributors.values())
        proven = self._all_from_here and len(givers) == 1 and not passed_on
        relay.quarantine.add(self._digest, self._contributors, proven=proven)
        try:
            await relay.hear(self._digest, givers, VERDICTS_SECONDS)
        finally:
            blamed = [node for node in givers if (self._digest, node.id) in relay.quarantine]
            relay.metrics.count_quarantined(len(blamed))
            for node in blamed:
                relay.outcomes.corrupt(node, self._digest)

    def _note_failure(self, stream: Stream, error: StafettError) -> None:
        node = stream.candidate.node
        self._sources.left(stream.candidate, error)
        match error:
            case Overloaded():
                self._relay.outcomes.overloaded(node)
            case BlobUnknown():
                self._relay.locator.forget(self._digest, node.id)
            case Unavailable() if not waited(error):
                self._relay.outcomes.failed(stream)
        self._count_failover(stream, _reason(error), str(error))

    def _count_failover(self, stream: Stream, kind: FailoverReason, reason: str) -> None:
        self._relay.metrics.count_failover(kind)
        node_id = stream.candidate.node.id
        pull_trace.failover(stream.span, node_id, kind, reason, self._position)
        log.info("holder_left", node=node_id, reason=reason, digest=str(self._digest), offset=self._position)


def _reason(error: StafettError) -> FailoverReason:
    if isinstance(error, Unavailable) and error.reason == STALLED:
        return "stalled"
    return "waited" if waited(error) else _REASONS[type(error)]


async def _close(race: _Race) -> None:
    for task in race:
        task.cancel()
    try:
        await asyncio.gather(*race, return_exceptions=True)
    finally:
        for stream in race.values():
            await stream.aclose()
