"""A running transfer: the bytes of one blob on their way to one client, whoever of the holders they come from.

`Relay` hands out transfers; a `Transfer` goes on at the same byte with the next holder when one breaks, stalls or lies
about the size. Whole blobs are hashed on the way and the last piece is held back until the digest is right. Choosing
is `selection`'s, opening streams the peer reader's.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections import Counter
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass, field

import structlog

from stafett.common.blob_codec import BlobInfo, Waiting
from stafett.common.cluster import Node
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
from stafett.gateway.byte_range import Span
from stafett.gateway.locator import Locator
from stafett.gateway.outcomes import Outcomes
from stafett.gateway.ports import PeerReader
from stafett.gateway.quarantine import Quarantine
from stafett.gateway.selection import Asking, Candidate, Rank

log = structlog.get_logger()

LATE_HOLDER_LOOKUPS = 2
"""How often a transfer asks the tracker again when it has run out of holders."""
LATE_HOLDER_WAIT_SECONDS = 0.2
FIRST_PIECE_SECONDS = 1.5
"""Everything before the first byte together: after it the client is told 404 and goes elsewhere."""

_HOLDER_FAILED = (Unavailable, Overloaded, BlobUnknown, Draining, RangeUnsatisfiable)


@dataclass
class Relay:
    """What all transfers of a gateway share. Only `nodes` and `pending` change."""

    locator: Locator
    reader: PeerReader
    rank: Rank
    asking: Asking
    quarantine: Quarantine
    stall_timeout_seconds: float
    count_failover: Callable[[str], None]
    outcomes: Outcomes
    rng: random.Random
    nodes: dict[str, Node] = field(default_factory=dict)
    """What Watch says of each node."""
    pending: Counter[str] = field(default_factory=Counter)
    """Streams open to each node."""

    async def candidates(self, digest: Digest, *, fresh: bool = False) -> tuple[Candidate, ...]:
        """Rank the holders of a digest that may be asked."""
        located = await self.locator.locate([digest], fresh=fresh)
        trusted = [holder for holder in located[digest] if (digest, holder.node.id) not in self.quarantine]
        return self.rank(trusted, self.asking, self.nodes, self.pending, self.rng)


class Transfer:
    """One client's bytes. `served_by` is the candidate whose bytes are coming now."""

    def __init__(self, relay: Relay, digest: Digest, size_bytes: int, span: Span) -> None:
        self._relay = relay
        self._digest = digest
        self._size_bytes = size_bytes
        self._position = span.offset
        self._end = span.offset + span.length
        self._hash = hashlib.sha256() if span.length == size_bytes else None
        self._hashing: asyncio.Future[None] | None = None
        self._failed: set[str] = set()
        self._contributors: dict[str, Node] = {}
        self._lookups = 0
        self.served_by: Candidate | None = None

    async def pieces(self) -> AsyncGenerator[memoryview, None]:
        """Yield the bytes in order; the next holder takes over wherever one stops.

        Raises:
            BlobUnknown: when no holder is left. CorruptContent: when the digest is wrong; the last piece is not
            yielded then, and nobody who contributed is asked again for it.
        """
        while self._position < self._end:
            candidate = await self._next_candidate()
            try:
                async with aclosing(self._stream(candidate)) as stream:
                    async for piece in stream:
                        await self._account(piece)
                        yield piece
                self._relay.outcomes.succeeded(candidate.node)
            except _HOLDER_FAILED as error:
                self._note_failure(candidate, error)

    async def first_piece(self, pieces: AsyncGenerator[memoryview, None]) -> memoryview | None:
        """Wait for the first bytes, which decide between 200 and 404; None when the span is empty.

        Raises:
            BlobUnknown: if they do not come in time, or from anybody.
        """
        try:
            async with asyncio.timeout(FIRST_PIECE_SECONDS):
                return await anext(pieces, None)
        except TimeoutError as error:
            raise BlobUnknown(self._digest) from error

    async def _next_candidate(self) -> Candidate:
        """Choose whom to ask next: never one that failed this transfer, but also one that became known late."""
        fresh = False
        while True:
            for candidate in await self._relay.candidates(self._digest, fresh=fresh):
                if candidate.node.id not in self._failed:
                    return candidate
            if self._lookups >= LATE_HOLDER_LOOKUPS or not self._failed:
                raise BlobUnknown(self._digest)
            if self._lookups:
                await asyncio.sleep(LATE_HOLDER_WAIT_SECONDS)
            self._lookups += 1
            fresh = True

    async def _stream(self, candidate: Candidate) -> AsyncGenerator[memoryview, None]:
        """Read from one holder from the present position on; silence counts as a failure."""
        node = candidate.node
        wanted = self._end - self._position
        self._relay.pending[node.id] += 1
        try:
            async with aclosing(self._relay.reader.read(node, self._digest, self._position, wanted)) as frames:
                while wanted > 0:
                    async with asyncio.timeout(self._relay.stall_timeout_seconds):
                        frame = await anext(frames, None)
                    if frame is None:
                        raise Unavailable(node.id, "the stream ended early")
                    if isinstance(frame, BlobInfo):
                        self._check_size(node, frame)
                    elif not isinstance(frame, Waiting):
                        wanted -= len(frame)
                        if wanted < 0:
                            raise Unavailable(node.id, "it sent more than was asked for")
                        self.served_by = candidate
                        yield memoryview(frame)
        except TimeoutError as error:
            raise Unavailable(node.id, "stalled") from error
        finally:
            self._relay.pending[node.id] -= 1

    def _check_size(self, node: Node, info: BlobInfo) -> None:
        if info.size_bytes != self._size_bytes:
            raise Unavailable(node.id, f"it states {info.size_bytes} bytes, others {self._size_bytes}")

    async def _account(self, piece: memoryview) -> None:
        """Count and hash a piece; the last one only passes with the right digest.

        Hashing runs in a thread while the piece is already on its way (hashlib lets go of the GIL).
        """
        assert self.served_by is not None
        self._contributors[self.served_by.node.id] = self.served_by.node
        self._position += len(piece)
        if self._hash is None:
            return
        if self._hashing is not None:
            await self._hashing
        self._hashing = asyncio.get_running_loop().run_in_executor(None, self._hash.update, piece)
        if self._position < self._end:
            return
        await self._hashing
        if self._hash.hexdigest() != self._digest.hex:
            self._relay.quarantine.add(self._digest, self._contributors)
            for node in self._contributors.values():
                self._relay.outcomes.corrupt(node, self._digest)
            log.error("wrong_bytes", digest=str(self._digest), nodes=sorted(self._contributors))
            raise CorruptContent(self._digest, ", ".join(sorted(self._contributors)))

    def _note_failure(self, candidate: Candidate, error: StafettError) -> None:
        node_id = candidate.node.id
        self._failed.add(node_id)
        if isinstance(error, BlobUnknown):
            self._relay.locator.forget(self._digest, node_id)
        elif isinstance(error, Overloaded):
            self._relay.outcomes.overloaded(candidate.node)
        else:
            self._relay.outcomes.failed(candidate.node)
        reason = "stalled" if isinstance(error, Unavailable) and error.reason == "stalled" else type(error).__name__
        self._relay.count_failover(reason)
        log.info("holder_left", node=node_id, reason=str(error), digest=str(self._digest), offset=self._position)
