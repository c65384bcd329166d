"""What gateways report of their peers: failures that two of them met make a node suspect, if a probe confirms."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import structlog

from stafett.common.cluster import Node, NodeState
from stafett.common.digest import Digest
from stafett.tracker.liveness import Event
from stafett.tracker.membership import Membership
from stafett.tracker.membership_store import Due, Experienced, MembershipStore
from stafett.tracker.probe import Probe

log = structlog.get_logger()

REPORTERS_NEEDED = 2
"""One gateway alone never evicts anybody: it may be the one that is cut off."""
DOUBTFUL_MAX = 1_000
"""Blobs waiting to be verified; with more the next report comes in time."""

Verify = Callable[[Node, Digest], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class PeerReport:
    """How a peer behaved towards one gateway, and digests of which it sent wrong bytes."""

    met: Experienced
    corrupt: tuple[Digest, ...]


class Outcomes:
    """Takes reports."""

    def __init__(self, nodes: MembershipStore, membership: Membership, probe: Probe, verify: Verify) -> None:
        self._nodes = nodes
        self._membership = membership
        self._probe = probe
        self._verify = verify
        self._doubtful: dict[tuple[str, Digest], Node] = {}
        self._doubts = asyncio.Event()

    async def take(self, reporter: str, reports: Sequence[PeerReport]) -> None:
        """Act on one gateway's batch. Raises Unavailable: if Redis is away."""
        known = [
            (report, member.node) for report in reports if (member := self._membership.members.get(report.met.node_id))
        ]
        current = [(report, node) for report, node in known if report.met.epoch == node.epoch]
        if current:
            await self._nodes.add_experience([report.met for report, _ in current])
        await asyncio.gather(*(self._judge(node, reporter) for report, node in current if report.met.failed))
        for report, node in current:
            for digest in report.corrupt:
                if len(self._doubtful) < DOUBTFUL_MAX:
                    self._doubtful[node.id, digest] = node
                    self._doubts.set()

    async def verify_doubtful(self) -> None:
        """Have nodes read again what they are said to have sent wrong, one blob after the other, until cancelled."""
        while True:
            await self._doubts.wait()
            while self._doubtful:
                (node_id, digest), node = next(iter(self._doubtful.items()))
                await self._verify(node, digest)
                del self._doubtful[node_id, digest]
            self._doubts.clear()

    async def _judge(self, node: Node, reporter: str) -> None:
        reporters = await self._nodes.report(node.id, reporter)
        if reporters < REPORTERS_NEEDED or node.state is not NodeState.READY or await self._probe(node.address):
            return
        if await self._nodes.apply(Due(node.id, node.epoch, Event.REPORTED)):
            log.warning("node_judged", node=node.id, reason=Event.REPORTED.value, reporters=reporters)
