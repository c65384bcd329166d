"""Hashes a blob's pieces while they are on their way to the client."""

from __future__ import annotations

import asyncio
import hashlib

from stafett.common.digest import Digest


class RunningDigest:
    """The sha256 of all pieces so far; each is hashed in a thread (hashlib drops the GIL) while the caller goes on."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self._under_way: asyncio.Future[None] | None = None

    async def add(self, piece: memoryview) -> None:
        """Take the next piece, which must not change any more; waits for the one before."""
        if self._under_way is not None:
            await self._under_way
        self._under_way = asyncio.get_running_loop().run_in_executor(None, self._hash.update, piece)

    async def matches(self, digest: Digest) -> bool:
        """Tell whether all pieces together have this digest."""
        if self._under_way is not None:
            await self._under_way
        return self._hash.hexdigest() == digest.hex
