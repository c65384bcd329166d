"""One node's session at this replica: from its registration to the end of its stream.

Decides when to ask the node for a full announcement. Knows no protobuf; states change by `liveness` and Redis only.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import structlog

from stafett.common.backoff import backoff_seconds
from stafett.common.cluster import Announcement, HealthSample, Registration
from stafett.common.errors import SessionLost, Unavailable
from stafett.common.inventory import Inventory
from stafett.tracker.holdings_store import HoldingsStore, Owner
from stafett.tracker.lease_renewals import LeaseRenewals
from stafett.tracker.liveness import Event
from stafett.tracker.membership_store import MembershipStore, Renewal

log = structlog.get_logger()

COMPARE_SECONDS = 60.0
"""Time between two comparisons of what a node holds with the index."""


@dataclass(frozen=True, slots=True)
class SessionParts:
    """What every session of a replica works with."""

    nodes: MembershipStore
    renewals: LeaseRenewals
    holdings: HoldingsStore
    refresh_seconds: float
    rng: random.Random
    ordered_to_drain: Callable[[str, int], bool]
    """Whether an operator wants a process of a node out of service."""


class NodeSession:
    """A session that holds a lease. Make one with `open`."""

    def __init__(self, parts: SessionParts, owner: Owner, age_seconds: float) -> None:
        self._parts = parts
        self.owner = owner
        self._draining = False
        self._ordered: bool | None = None
        now = time.monotonic()
        self._compare_at = now + parts.rng.uniform(0, COMPARE_SECONDS)
        self._refresh_at = now + parts.rng.uniform(0.75, 1.25) * parts.refresh_seconds - age_seconds

    @classmethod
    async def open(
        cls, parts: SessionParts, registration: Registration, inventory: Inventory
    ) -> tuple[NodeSession, bool]:
        """Grant a lease; True if the node has to announce everything.

        Raises:
            SessionLost: if a newer session of the node has come in between.
            Unavailable: if Redis is away.
        """
        remembered = parts.ordered_to_drain(registration.node_id, registration.incarnation)
        epoch = await parts.nodes.grant(registration, drain_ordered=remembered)
        owner = Owner(registration.node_id, epoch, registration.incarnation, registration.topology)
        opened = await parts.holdings.open(owner)
        log.info("session_opened", node=owner.node_id, epoch=epoch, address=registration.address.target())
        return cls(parts, owner, opened.age_seconds), not opened.known or opened.inventory != inventory

    async def announce(self, news: Announcement) -> None:
        """Put changes into the index; while Redis is away this waits for it. Raises SessionLost when fenced."""
        await self._until_done(lambda: self._parts.holdings.announce(self.owner, news))

    async def beat(self, health: HealthSample | None, inventory: Inventory | None) -> str:
        """Renew the lease; return why the node should announce everything, or "".

        Raises:
            SessionLost: when fenced. Unavailable: if Redis is away, the session goes on.
        """
        await self._parts.renewals.renew(Renewal(self.owner.node_id, self.owner.epoch, health))
        now = time.monotonic()
        if inventory is None or now < min(self._compare_at, self._refresh_at):
            return ""
        if now >= self._refresh_at:
            self._refresh_at = now + self._parts.refresh_seconds
            return "periodic refresh"
        self._compare_at = now + COMPARE_SECONDS
        if await self._parts.holdings.inventory(self.owner) == inventory:
            return ""
        log.warning("holdings_differ", node=self.owner.node_id, remedy="nothing to do, the node announces all again")
        return "the index differs from what the node holds"

    async def drain(self, draining: bool) -> None:
        """Enter or leave DRAINING; while Redis is away this waits for it. Raises SessionLost when fenced."""
        event = Event.DRAIN_ANNOUNCED if draining else Event.DRAIN_REVOKED
        await self._until_done(lambda: self._parts.nodes.change(self.owner.node_id, self.owner.epoch, event))
        self._draining = draining

    def drain_order(self) -> bool | None:
        """Tell what the node must hear of an operator's wish: True to drain, False to go on, None for nothing new.

        Each session tells it once at least: the node may have heard the opposite in an earlier one.
        """
        wanted = self._parts.ordered_to_drain(self.owner.node_id, self.owner.incarnation)
        if wanted is self._ordered:
            return None
        self._ordered = wanted
        return wanted

    async def close(self) -> None:
        """Note that the stream has ended: a node that was draining has left, others may come back in time."""
        log.info("session_closed", node=self.owner.node_id, epoch=self.owner.epoch, draining=self._draining)
        try:
            if self._draining:
                await self._parts.nodes.change(self.owner.node_id, self.owner.epoch, Event.LEFT)
            else:
                await self._parts.nodes.note_broken(self.owner.node_id, self.owner.epoch)
        except (SessionLost, Unavailable):
            log.info("end_not_noted", node=self.owner.node_id, remedy="nothing to do, the lease expires")

    async def _until_done(self, operation: Callable[[], Awaitable[None]]) -> None:
        for attempt in range(1 << 30):
            try:
                return await operation()
            except Unavailable:
                await asyncio.sleep(backoff_seconds(attempt, cap=1.0, rng=self._parts.rng))
        return None
