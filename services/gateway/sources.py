"""Who is asked next for the rest of a blob: what a transfer wants to know, and the answer from the ranked holders.

Ranks by `selection`; never touches bytes. Of a blob that is still spreading, `following` answers instead.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

from stafett.common.digest import Digest
from stafett.common.errors import BlobUnknown, Overloaded, StafettError, Unavailable
from stafett.gateway.relay import Relay
from stafett.gateway.selection import Candidate
from stafett.gateway.stream import WAITED

LATE_HOLDER_LOOKUPS = 2
"""How often a transfer asks the tracker again when it has run out of holders."""
POSTPONED_LOOKUPS = 6
"""The same while some of them were only full, or slow."""
LOOKUP_PAUSE_SECONDS = 0.2
FIRST_PIECE_SECONDS = 1.5
"""Everything before the first byte together: after it the client is told 404 and goes elsewhere."""


class Sources(Protocol):
    """Where one transfer's bytes come from. `position` is how many bytes from the blob's start the client has."""

    position: int

    @property
    def first_piece_seconds(self) -> float:
        """How long the client may wait for its first byte."""
        ...

    @property
    def one_stream(self) -> bool:
        """Whether a client that wants to open several streams is to be given one."""
        ...

    async def next(self) -> Candidate:
        """Choose whom to ask next. Raises BlobUnknown: when nobody is left."""
        ...

    def other_than(self, asked: Candidate) -> Candidate | None:
        """Choose another one than the one that is being asked, from memory; None if there is none."""
        ...

    def wants_to_leave(self, serving: Candidate) -> bool:
        """Tell whether somebody better than the one who serves is known; `next` gives him."""
        ...

    def left(self, candidate: Candidate, reason: StafettError | None) -> None:
        """Note that one was left: for an error, or (None) as he was too slow."""
        ...

    async def close(self, *, finished: bool) -> None:
        """The transfer is over; `finished`: the client has everything."""
        ...


class RankedSources:
    """The holders that have all of the blob, best first, each once; also those that become known late."""

    first_piece_seconds = FIRST_PIECE_SECONDS
    one_stream = False

    def __init__(self, relay: Relay, digest: Digest) -> None:
        self._relay = relay
        self._digest = digest
        self._failed: set[str] = set()
        self._postponed: set[str] = set()
        self._lookups = 0
        self.position = 0

    async def next(self) -> Candidate:
        """See `Sources`. Those that were full or slow are asked again when nobody else is left, after a pause."""
        fresh = False
        while True:
            ranked = await self._relay.candidates(self._digest, fresh=fresh)
            left = [candidate for candidate in ranked if candidate.node.id not in self._failed]
            for candidate in left:
                if candidate.node.id not in self._postponed:
                    return candidate
            lookups_max = POSTPONED_LOOKUPS if left else LATE_HOLDER_LOOKUPS
            if self._lookups >= lookups_max or not (self._failed or self._postponed):
                raise BlobUnknown(self._digest)
            if self._lookups:
                await asyncio.sleep(LOOKUP_PAUSE_SECONDS)
                self._postponed.clear()
            self._lookups += 1
            fresh = True

    def other_than(self, asked: Candidate) -> Candidate | None:
        """See `Sources`."""
        tried = {asked.node.id, *self._failed, *self._postponed}
        ranked = self._relay.ranked(self._digest, self._relay.locator.remembered(self._digest))
        return next((candidate for candidate in ranked if candidate.node.id not in tried), None)

    def wants_to_leave(self, serving: Candidate) -> bool:
        """See `Sources`."""
        return False

    def left(self, candidate: Candidate, reason: StafettError | None) -> None:
        """See `Sources`."""
        if reason is None or isinstance(reason, Overloaded) or waited(reason):
            self._postponed.add(candidate.node.id)
        else:
            self._failed.add(candidate.node.id)

    async def close(self, *, finished: bool) -> None:
        """See `Sources`."""


def waited(error: StafettError) -> bool:
    """Tell whether a parent was left only because it had nothing new itself, which is not its fault."""
    return isinstance(error, Unavailable) and error.reason == WAITED
