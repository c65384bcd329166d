"""Drops downloads that cannot become right any more, as wrong bytes were sent on before their digest could tell.

containerd keeps such an ingest at full size for as long as the puller's lease lasts, and each new attempt fails on it.
Aborting one that is still written makes the next pull wait for its lock (about 11 s on 1.6): only idle ones are.
"""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass, replace
from typing import NoReturn

import structlog

from stafett.common.digest import Digest
from stafett.common.errors import Unavailable
from stafett.node.ports import ContentStore, Ingest

log = structlog.get_logger()

LOOK_SECONDS = 0.5
IDLE_LOOKS = 6
"""Unchanged for so many looks: nobody writes it."""
REFUSALS_MAX = 20
"""So often the store may refuse, which is for a minute; then the ingest is left to it."""


@dataclass(frozen=True, slots=True)
class _Look:
    """What a look at an ingest's file saw; how many looks before saw the same, and how often the drop was refused."""

    inode: int
    size_bytes: int
    unchanged: int = 0
    refused: int = 0


class SpoiltIngests:
    """The ingests that are to go: those of a digest that are there when it is named, and none begun afresh later."""

    def __init__(self, store: ContentStore) -> None:
        self._store = store
        self._named: set[Digest] = set()
        self._watched: dict[Ingest, _Look] = {}
        self._wakened = asyncio.Event()

    def discard(self, digest: Digest) -> None:
        """Abort the ingests of a digest when they have become idle."""
        self._named.add(digest)
        self._wakened.set()

    async def run(self) -> NoReturn:
        """Look, as long as there is something to look at."""
        while True:
            await self._wakened.wait()
            try:
                await self._find_named()
                for ingest, before in list(self._watched.items()):
                    await self._look(ingest, before)
            except Unavailable as error:
                log.info("ingests_not_seen", part=error.part, reason=error.reason)
            if not self._named and not self._watched:
                self._wakened.clear()
            await asyncio.sleep(LOOK_SECONDS)

    async def _find_named(self) -> None:
        if not self._named:
            return
        for ingest in await self._store.ingests():
            look = _look_at(ingest)
            if ingest.digest in self._named and look is not None:
                self._watched[ingest] = look
        self._named.clear()

    async def _look(self, ingest: Ingest, before: _Look) -> None:
        now = _look_at(ingest)
        if now is None or now.inode != before.inode or now.size_bytes < before.size_bytes:
            del self._watched[ingest]  # it is gone, or was started again from nothing
        elif now.size_bytes > before.size_bytes:
            self._watched[ingest] = now
        elif before.unchanged < IDLE_LOOKS:
            self._watched[ingest] = replace(before, unchanged=before.unchanged + 1)
        else:
            await self._drop(ingest, before)

    async def _drop(self, ingest: Ingest, before: _Look) -> None:
        try:
            await self._store.abort(ingest)
        except Unavailable as error:
            if before.refused < REFUSALS_MAX:
                self._watched[ingest] = replace(before, unchanged=0, refused=before.refused + 1)
                return
            log.warning("ingest_not_dropped", digest=str(ingest.digest), owner=ingest.owner, reason=error.reason)
        else:
            log.warning("ingest_dropped", digest=str(ingest.digest), owner=ingest.owner, reason="wrong bytes")
        del self._watched[ingest]


def _look_at(ingest: Ingest) -> _Look | None:
    try:
        status = os.stat(ingest.data)
    except OSError:
        return None
    return _Look(status.st_ino, status.st_size)
