"""Gathers the heartbeats that come in while the last batch is on its way to Redis, and sends them as one script."""

from __future__ import annotations

import asyncio

from stafett.common.errors import SessionLost, Unavailable
from stafett.tracker.membership_store import MembershipStore, Renewal

_BATCH_MAX = 1000


class LeaseRenewals:
    """Renews leases in natural batches; `run` must be running."""

    def __init__(self, store: MembershipStore) -> None:
        self._store = store
        self._waiting: list[tuple[Renewal, asyncio.Future[bool]]] = []
        self._work = asyncio.Event()

    async def renew(self, renewal: Renewal) -> None:
        """Renew a lease.

        Raises:
            SessionLost: if it is fenced: gone, or a newer session holds it.
            Unavailable: if Redis is away; the lease is as it was.
        """
        done: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._waiting.append((renewal, done))
        self._work.set()
        if not await done:
            raise SessionLost(renewal.node_id, renewal.epoch)

    async def run(self) -> None:
        """Send batches until cancelled."""
        while True:
            await self._work.wait()
            batch, self._waiting = self._waiting[:_BATCH_MAX], self._waiting[_BATCH_MAX:]
            if not self._waiting:
                self._work.clear()
            try:
                renewed = await self._store.renew([renewal for renewal, _ in batch])
            except Unavailable as error:
                for _, done in batch:
                    if not done.done():
                        done.set_exception(Unavailable(error.part, error.reason))
                continue
            for (_, done), live in zip(batch, renewed, strict=True):
                if not done.done():
                    done.set_result(live)
