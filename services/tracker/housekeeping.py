"""What every replica does on its own: judge nodes by their leases, probe doubtful ones, forget those long gone."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

import structlog

from stafett.common.cluster import NodeState
from stafett.common.errors import Unavailable
from stafett.tracker.holdings_store import HoldingsStore
from stafett.tracker.liveness import Event, Judge, mass_failure
from stafett.tracker.membership import Membership
from stafett.tracker.membership_store import Due, MembershipStore, Scan
from stafett.tracker.probe import Probe

log = structlog.get_logger()

SCAN_SECONDS = 0.3
PROBE_SECONDS = 2.0
GUARD_PROBE_SECONDS = 2.0
GUARD_SAMPLE = 16
_SWEEPS_PER_LIFE = 10
_SWEEP_MAX_SECONDS = 60.0


class Housekeeping:
    """Loops that run until cancelled. `guarded` tells whether the mass guard was up at the last scan.

    `guards_raised` counts how often this replica has raised it.
    """

    def __init__(
        self,
        nodes: MembershipStore,
        holdings: HoldingsStore,
        membership: Membership,
        probe: Probe,
        lease_ttl_seconds: float,
    ) -> None:
        self._nodes = nodes
        self._holdings = holdings
        self._membership = membership
        self._probe = probe
        self.guarded = False
        self.guards_raised = 0
        self._lease_ttl_seconds = lease_ttl_seconds
        self._redis_unix_ms = 0

    async def scan_leases(self) -> None:
        """Scan several times a second; as the first to see Redis fail and come back this keeps the view honest too."""
        judge = Judge(self._lease_ttl_seconds, 0.0).missed_scan(time.monotonic())
        due = time.monotonic()
        while True:
            await asyncio.sleep(due - time.monotonic())
            now = time.monotonic()
            judge = judge.lagged(now, now - due)
            try:
                await self.look(may_judge=judge.may_judge(now))
            except Unavailable:
                judge = judge.missed_scan(time.monotonic())
            due = max(due + SCAN_SECONDS, time.monotonic())

    async def look(self, *, may_judge: bool) -> None:
        """Scan once, and do what is due if this replica may judge. Raises Unavailable."""
        scan = await self._nodes.scan()
        self._redis_unix_ms = scan.now_unix_ms
        self._membership.observe(scan)
        if may_judge:
            await self._carry_out(scan)

    async def _carry_out(self, scan: Scan) -> None:
        """Make the transitions that are due, unless so many are that the guard goes up."""
        recovered = [due for due in scan.due if due.event is Event.RECOVERED]
        falling = [due for due in scan.due if due.event is not Event.RECOVERED]
        if scan.guarded:
            await self._end_guard(falling)
        elif not scan.guard_lifted and mass_failure(scan.known_nodes, scan.recent_falls, scan.falling_nodes):
            log.error(
                "mass_guard_raised", falling=scan.falling_nodes, remedy="many nodes seem to fail at once: probing them"
            )
            await self._nodes.raise_guard()
            self.guards_raised += 1
        else:
            recovered += falling
        for due in recovered:
            if await self._nodes.apply(due):
                log.warning("node_judged", node=due.node_id, reason=due.event.value)
        self.guarded = scan.guarded

    async def _end_guard(self, falling: Sequence[Due]) -> None:
        """Probe some of those that seem to fail, one replica at a time; most are silent: then they did fail."""
        if not falling or not await self._nodes.take_turn("guard", GUARD_PROBE_SECONDS):
            return
        sample = [due.node_id for due in falling[:GUARD_SAMPLE]]
        members = [self._membership.members[node_id] for node_id in sample if node_id in self._membership.members]
        answers = await asyncio.gather(*(self._probe(member.node.address) for member in members))
        silent = answers.count(False)
        log.warning("mass_guard_probed", asked=len(answers), silent=silent)
        if silent * 2 > len(answers):
            await self._nodes.lift_guard()

    async def clear_reported(self) -> None:
        """Probe the nodes that gateways had reported; who answers again is READY again."""
        while True:
            await asyncio.sleep(PROBE_SECONDS)
            reported = [
                member.node
                for member in self._membership.members.values()
                if member.node.state is NodeState.SUSPECT and member.node.reason == Event.REPORTED.value
            ]
            try:
                if reported and await self._nodes.take_turn("probe", PROBE_SECONDS / 2):
                    for node in reported[:GUARD_SAMPLE]:
                        if await self._probe(node.address):
                            await self._nodes.apply(Due(node.id, node.epoch, Event.RECOVERED))
            except Unavailable:
                continue

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
