"""When a replica judges, and when it holds back. The scripted store only tells what is due and notes what is done."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import cast

from stafett.common.cluster import Address
from stafett.tracker.holdings_store import HoldingsStore
from stafett.tracker.housekeeping import Housekeeping
from stafett.tracker.liveness import Event
from stafett.tracker.membership import Membership
from stafett.tracker.membership_store import Due, MembershipStore, Scan

LEASE_SECONDS = 0.8
DEAD = Due("dead", 1, Event.LEASE_EXPIRED)


class ScriptedStore:
    """One of a hundred nodes has lost its lease, whenever somebody looks."""

    def __init__(self) -> None:
        self.judged_at: list[float] = []

    async def scan(self) -> Scan:
        return Scan("g", 1, 0, 100, 0, 1, False, False, (DEAD,))

    async def apply(self, due: Due) -> bool:
        assert due == DEAD
        self.judged_at.append(time.monotonic())
        return True


class EmptyView:
    """Knows nobody."""

    members: dict[str, object] = {}  # noqa: RUF012

    def observe(self, scan: Scan) -> None:
        """Nothing to compare."""


async def never_asked(address: Address) -> bool:
    raise AssertionError(address)


@asynccontextmanager
async def scanning(store: ScriptedStore) -> AsyncIterator[None]:
    housekeeping = Housekeeping(
        cast(MembershipStore, store),
        cast(HoldingsStore, None),
        cast(Membership, EmptyView()),
        never_asked,
        LEASE_SECONDS,
    )
    task = asyncio.create_task(housekeeping.scan_leases())
    yield
    task.cancel()
    await asyncio.wait([task])


async def judges_again(store: ScriptedStore) -> float:
    """Wait for the next verdict; tell when it fell."""
    seen = len(store.judged_at)
    async with asyncio.timeout(10):
        while len(store.judged_at) == seen:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    return store.judged_at[seen]


async def test_a_replica_that_has_just_started_gives_everybody_the_time_of_a_lease() -> None:
    store, started_at = ScriptedStore(), time.monotonic()
    async with scanning(store):
        assert await judges_again(store) - started_at >= LEASE_SECONDS


async def test_a_replica_that_was_frozen_gives_everybody_the_time_of_a_lease() -> None:
    store = ScriptedStore()
    async with scanning(store):
        await judges_again(store)
        time.sleep(2 * LEASE_SECONDS)  # noqa: ASYNC251 - the whole loop stands still, as under SIGSTOP
        thawed_at = time.monotonic()
        assert await judges_again(store) - thawed_at >= LEASE_SECONDS
