"""Drops downloads that cannot become right any more, as wrong bytes were sent on before their digest could tell.

containerd keeps such an ingest at full size for as long as the puller's lease lasts, and each new attempt fails on it.
Aborting one that is still written makes the next pull wait for its lock (about 11 s on 1.6): only idle ones are.
"""

from __future__ import annotations

import asyncio
import os
from typing import NoReturn

import structlog

from stafett.common.digest import Digest
from stafett.common.errors import Unavailable
from stafett.node.ports import ContentStore, Ingest

log = structlog.get_logger()

LOOK_SECONDS = 0.5
IDLE_LOOKS = 6
"""Unchanged for so many looks: nobody writes it."""
LOOKS = 120
"""Forgotten after so many; by then the puller has given up, or what it goes on with is its own affair."""


class SpoiltIngests:
    """Digests whose ingests are to go."""

    def __init__(self, store: ContentStore) -> None:
        self._store = store
        self._looks_left: dict[Digest, int] = {}
        self._seen: dict[Ingest, tuple[tuple[int, int, int], int]] = {}
        self._wakened = asyncio.Event()

    def discard(self, digest: Digest) -> None:
        """Abort the ingests of a digest when they have become idle."""
        self._looks_left[digest] = LOOKS
        self._wakened.set()

    async def run(self) -> NoReturn:
        """Look, as long as there is something to look for."""
        while True:
            await self._wakened.wait()
            try:
                await self._look()
            except Unavailable as error:
                log.info("ingests_not_seen", part=error.part, reason=error.reason)
            self._looks_left = {digest: left - 1 for digest, left in self._looks_left.items() if left > 1}
            if not self._looks_left:
                self._wakened.clear()
                self._seen.clear()
            await asyncio.sleep(LOOK_SECONDS)

    async def _look(self) -> None:
        for ingest in await self._store.ingests():
            if ingest.digest not in self._looks_left:
                continue
            try:
                status = os.stat(ingest.data)
            except OSError:
                continue
            now = (status.st_ino, status.st_size, status.st_mtime_ns)
            before, looks = self._seen.get(ingest, (now, 0))
            self._seen[ingest] = (now, looks + 1 if now == before else 0)
            if now == before and looks >= IDLE_LOOKS:
                log.warning("ingest_dropped", digest=str(ingest.digest), owner=ingest.owner, reason="wrong bytes")
                await self._store.abort(ingest)
