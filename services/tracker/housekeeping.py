"""What every replica does on its own: look for leases that ran out, and forget nodes that are long gone."""

from __future__ import annotations

import asyncio
import time

import structlog

from stafett.common.cluster import NodeState
from stafett.common.errors import Unavailable
from stafett.tracker.holdings_store import HoldingsStore
from stafett.tracker.liveness import Judge
from stafett.tracker.membership import Membership
from stafett.tracker.membership_store import MembershipStore

log = structlog.get_logger()

SCAN_SECONDS = 0.5
_SWEEPS_PER_LIFE = 10
_SWEEP_MAX_SECONDS = 60.0


class Housekeeping:
    """Two loops, both run until cancelled."""

    def __init__(
        self, nodes: MembershipStore, holdings: HoldingsStore, membership: Membership, lease_ttl_seconds: float
    ) -> None:
        self._nodes = nodes
        self._holdings = holdings
        self._membership = membership
        self._lease_ttl_seconds = lease_ttl_seconds
        self._redis_unix_ms = 0

    async def scan_leases(self) -> None:
        """Scan each half second; as the first to see Redis fail and come back this also keeps the view honest."""
        judge = Judge(self._lease_ttl_seconds, 0.0).missed_scan(time.monotonic())
        due = time.monotonic()
        while True:
            await asyncio.sleep(due - time.monotonic())
            now = time.monotonic()
            try:
                scan = await self._nodes.scan(judge=judge.may_judge(now, now - due))
            except Unavailable:
                judge = judge.missed_scan(time.monotonic())
            else:
                self._redis_unix_ms = scan.now_unix_ms
                self._membership.observe(scan)
                for node_id in scan.expired:
                    log.warning("lease_expired", node=node_id)
            due = max(due + SCAN_SECONDS, time.monotonic())

    async def forget_nodes(self, after_seconds: float) -> None:
        """Forget nodes, with all they held, that have been down for that long; one replica at a time does it."""
        pause = min(after_seconds / _SWEEPS_PER_LIFE, _SWEEP_MAX_SECONDS)
        while True:
            await asyncio.sleep(pause)
            try:
                if self._redis_unix_ms and await self._nodes.take_turn("forget", pause / 2):
                    await self._forget_before(self._redis_unix_ms - round(after_seconds * 1000))
            except Unavailable:
                continue

    async def _forget_before(self, unix_ms: int) -> None:
        for member in list(self._membership.members.values()):
            node = member.node
            if node.state is not NodeState.DOWN or node.state_since_unix_ms >= unix_ms:
                continue
            if await self._nodes.forget(node.id, node.epoch):
                await self._holdings.clear(node.id, node.epoch)
                log.info("node_forgotten", node=node.id)
