"""Tells the own node what containerd is pulling, so that it announces each blob as soon as it is committed."""

from __future__ import annotations

import asyncio
import contextlib
from typing import NoReturn

from stafett.common.digest import Digest
from stafett.common.errors import Unavailable
from stafett.gateway.grpc_peer import OwnNode

QUEUED_MAX = 1000


class Expectations:
    """A bounded queue of digests; the oldest news are dropped when the node is away for long."""

    def __init__(self, node: OwnNode) -> None:
        self._node = node
        self._digests: dict[Digest, None] = {}
        self._wakened = asyncio.Event()

    def add(self, digest: Digest) -> None:
        """Queue a digest."""
        self._digests[digest] = None
        while len(self._digests) > QUEUED_MAX:
            del self._digests[next(iter(self._digests))]
        self._wakened.set()

    async def run(self) -> NoReturn:
        """Send what is queued, for ever."""
        while True:
            await self._wakened.wait()
            self._wakened.clear()
            digests, self._digests = list(self._digests), {}
            with contextlib.suppress(Unavailable):
                await self._node.expect(digests)
