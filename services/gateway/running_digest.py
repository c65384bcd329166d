"""Hashes a blob's pieces while they are on their way to the client."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncGenerator
from contextlib import aclosing

import structlog

from stafett.common.digest import Digest
from stafett.common.errors import StafettError

log = structlog.get_logger()


AHEAD_PIECES = 32
"""So many pieces, of at most 1 MiB, go on while the prefix is being read: a gigabyte of it takes a second or two."""


class RunningDigest:
    """The sha256 of all pieces so far; each is hashed in a thread (hashlib drops the GIL) while the caller goes on.

    `prefix` gives what the client has already; it is read while the first pieces are on their way. If it cannot be
    read, nothing is known.
    """

    def __init__(self, prefix: AsyncGenerator[memoryview, None] | None = None) -> None:
        self._hash = hashlib.sha256()
        self._prefix = prefix
        self._known = True
        self._room = asyncio.Semaphore(AHEAD_PIECES if prefix else 1)
        self._under_way: asyncio.Future[None] | None = None

    async def add(self, piece: memoryview) -> None:
        """Take the next piece, which must not change any more; waits for the one before, or the prefix."""
        await self._room.acquire()
        if self._prefix is not None:
            self._under_way, self._prefix = asyncio.ensure_future(self._read(self._prefix)), None
        self._under_way = asyncio.ensure_future(self._update_after(self._under_way, piece))

    async def contradicts(self, digest: Digest) -> bool:
        """Tell whether all pieces together are known to have another digest."""
        if self._under_way is not None:
            await self._under_way
        return self._known and self._hash.hexdigest() != digest.hex

    def close(self) -> None:
        """Stop what goes on."""
        if self._under_way is not None:
            self._under_way.cancel()

    async def _read(self, prefix: AsyncGenerator[memoryview, None]) -> None:
        try:
            async with aclosing(prefix):
                async for before in prefix:
                    await self._update(before)
        except (StafettError, TimeoutError) as error:
            self._known = False
            log.info("prefix_not_read", reason=str(error))

    async def _update_after(self, before: asyncio.Future[None] | None, piece: memoryview) -> None:
        try:
            if before is not None:
                await before
            await self._update(piece)
        finally:
            self._room.release()

    def _update(self, piece: memoryview) -> asyncio.Future[None]:
        return asyncio.get_running_loop().run_in_executor(None, self._hash.update, piece)
