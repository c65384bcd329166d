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


class RunningDigest:
    """The sha256 of all pieces so far; each is hashed in a thread (hashlib drops the GIL) while the caller goes on.

    `prefix` gives what the client has already; it is read while the first piece is on its way. If it cannot be read,
    nothing is known.
    """

    def __init__(self, prefix: AsyncGenerator[memoryview, None] | None = None) -> None:
        self._hash = hashlib.sha256()
        self._prefix = prefix
        self._known = True
        self._under_way: asyncio.Future[None] | None = None

    async def add(self, piece: memoryview) -> None:
        """Take the next piece, which must not change any more; waits for the one before."""
        if self._under_way is not None:
            await self._under_way
        if self._prefix is None:
            self._under_way = self._update(piece)
        else:
            self._under_way = asyncio.ensure_future(self._begin(self._prefix, piece))
            self._prefix = None

    async def contradicts(self, digest: Digest) -> bool:
        """Tell whether all pieces together are known to have another digest."""
        if self._under_way is not None:
            await self._under_way
        return self._known and self._hash.hexdigest() != digest.hex

    def close(self) -> None:
        """Stop what goes on."""
        if self._under_way is not None:
            self._under_way.cancel()

    async def _begin(self, prefix: AsyncGenerator[memoryview, None], piece: memoryview) -> None:
        try:
            async with aclosing(prefix):
                async for before in prefix:
                    await self._update(before)
        except (StafettError, TimeoutError) as error:
            self._known = False
            log.info("prefix_not_read", reason=str(error))
        await self._update(piece)

    def _update(self, piece: memoryview) -> asyncio.Future[None]:
        return asyncio.get_running_loop().run_in_executor(None, self._hash.update, piece)
