"""When a replica judges, and when it holds back. The scripted store only tells what is due and notes what is done."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import cast

import pytest

from stafett.common.cluster import Address, Node
from stafett.tracker.holdings_store import HoldingsStore
from stafett.tracker.housekeeping import Housekeeping
from stafett.tracker.liveness import Event
from stafett.tracker.membership import Membership
from stafett.tracker.membership_store import Due, MembershipStore, Scan
from stafett.tracker.proximity import Member

LEASE_SECONDS = 0.8
DEAD = Due("dead", 1, Event.LEASE_EXPIRED)


class ScriptedStore:
    """Nodes have lost their leases, whenever somebody looks."""

    def __init__(self, *, guarded: bool = False, due: tuple[Due, ...] = (DEAD,)) -> None:
        self.judged_at: list[float] = []
        self.lifted = False
        self._guarded, self._due = guarded, due

    async def scan(self) -> Scan:
        return Scan("g", 1, 0, 100, 0, len(self._due), self._guarded, False, self._due)

    async def take_turn(self, task: str, seconds: float) -> bool:
        return True

    async def lift_guard(self) -> None:
        self.lifted = True

    async def apply(self, due: Due) -> bool:
        assert due == DEAD
        self.judged_at.append(time.monotonic())
        return True


class View:
    """Knows some nodes."""

    def __init__(self, *members: Member) -> None:
        self.members = {member.node.id: member for member in members}

    def observe(self, scan: Scan) -> None:
        """Nothing to compare."""


async def never_asked(address: Address) -> bool:
    raise AssertionError(address)


@asynccontextmanager
async def scanning(store: ScriptedStore) -> AsyncIterator[None]:
    housekeeping = Housekeeping(
        cast(MembershipStore, store),
        cast(HoldingsStore, None),
        cast(Membership, View()),
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


@pytest.mark.parametrize(
    ("answers", "lifted"),
    [
        ((False, False, True), True),
        ((False, True, True), False),
        ((False, True), False),
        ((None, None, None), False),
        ((None, None, False), False),
    ],
)
async def test_the_guard_is_lifted_when_most_of_those_that_seem_to_fail_are_silent_and_the_replica_was_awake_to_hear_it(
    answers: tuple[bool | None, ...], lifted: bool
) -> None:
    nodes = [Node(f"n{port}", 1, Address("127.0.0.1", port)) for port in range(len(answers))]

    async def probe(address: Address) -> bool | None:
        return answers[address.port]

    store = ScriptedStore(guarded=True, due=tuple(Due(node.id, 1, Event.LEASE_EXPIRED) for node in nodes))
    view = View(*(Member(node, 1) for node in nodes))
    housekeeping = Housekeeping(
        cast(MembershipStore, store), cast(HoldingsStore, None), cast(Membership, view), probe, LEASE_SECONDS
    )
    await housekeeping.look(may_judge=True)
    assert store.lifted is lifted
    assert store.judged_at == [], "not before the next scan"
