"""Decides how a blob is got: from those who have it, or, for the host's own container runtime, through a relay tree.

Trees are for downloads that are open in the host's store. Small blobs that somebody has do not need one.
"""

from __future__ import annotations

import structlog

from stafett.common.digest import Digest
from stafett.common.errors import Unavailable
from stafett.gateway import pull_trace
from stafett.gateway.following import TreeSources
from stafett.gateway.relay import Relay
from stafett.gateway.seats import Seats
from stafett.gateway.selection import agreed_size
from stafett.gateway.sources import RankedSources, Sources

log = structlog.get_logger()

SMALL_BYTES = 1024 * 1024


class Sourcing:
    """Finds sources of blobs. Without `follow` only complete blobs are shared."""

    def __init__(self, relay: Relay, seats: Seats, *, follow: bool) -> None:
        self._relay = relay
        self._seats = seats
        self._follow = follow

    async def find(self, digest: Digest, *, receiving: bool, ranged: bool, image: str) -> tuple[Sources, int] | None:
        """Find where a blob comes from, and its size in bytes; None if nobody has it.

        Args:
            receiving: whether the client is the host's container runtime, with a download open for the blob.
            ranged: whether it asks for a range, and so may open several streams; those are for who has all of it.
            image: "registry/repository" that the client asks for.
        """
        candidates = await self._relay.candidates(digest)
        pull_trace.event("stafett.located", holders=len(candidates))
        small = bool(candidates) and agreed_size(candidates) < SMALL_BYTES
        follow = self._follow and receiving and not small and not (ranged and candidates)
        if follow and not self._seats.trackers_rest:
            tree = await self._tree(digest, image)
            if tree is not None:
                return tree
        if not candidates:
            return None
        return RankedSources(self._relay, digest), agreed_size(candidates)

    def fetching(self, digest: Digest) -> bool:
        """Tell whether the host has been told to fetch a blob from upstream, for all."""
        return self._seats.fetching(digest)

    async def _tree(self, digest: Digest, image: str) -> tuple[Sources, int] | None:
        try:
            state = await self._seats.own_node.receiving(digest)
        except Unavailable as error:
            log.info("no_tree", digest=str(digest), reason=f"own node: {error.reason}")
            return None
        if state is None or not state.size_bytes:
            return None
        return TreeSources(self._relay, self._seats, digest, state, image), state.size_bytes
