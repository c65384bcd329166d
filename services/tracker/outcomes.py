"""What gateways report of their peers: failures that two of them met make a node suspect, if a probe confirms."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import structlog

from stafett.common.cluster import Node, NodeState
from stafett.common.digest import Digest
from stafett.common.errors import Unavailable
from stafett.tracker.liveness import Event
from stafett.tracker.membership import Membership
from stafett.tracker.membership_store import Due, Experienced, MembershipStore
from stafett.tracker.probe import Probe

log = structlog.get_logger()

REPORTERS_NEEDED = 2
"""One gateway alone never evicts anybody: it may be the one that is cut off."""
DOUBTFUL_MAX = 1_000
"""Blobs waiting to be verified; with more the next report comes in time."""
PROBES_AT_ONCE = 16
VERIFIED_AT_ONCE = 8
"""A frozen node takes a minute to fail one of them."""

Verify = Callable[[Node, Digest], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class PeerReport:
    """How a peer behaved towards one gateway; digests of which it had a part in wrong bytes count as failed, too."""

    met: Experienced
    silent: bool
    """Whether it refused, broke or stalled."""
    corrupt: tuple[Digest, ...]


class Outcomes:
    """Takes reports."""

    def __init__(self, nodes: MembershipStore, membership: Membership, probe: Probe, verify: Verify) -> None:
        self._nodes = nodes
        self._membership = membership
        self._probe = probe
        self._verify = verify
        self._doubtful: dict[tuple[str, Digest], Node] = {}
        self._doubts: asyncio.Queue[tuple[str, Digest]] = asyncio.Queue()
        self._accused: dict[str, Node] = {}
        self._accusations = asyncio.Event()

    async def take(self, reporter: str, reports: Sequence[PeerReport]) -> None:
        """Act on one gateway's batch; whom it accuses is probed later.

        Raises:
            Unavailable: if Redis is away; wrong bytes are looked into nevertheless, under whatever epoch they came.
        """
        known = [
            (report, member.node) for report in reports if (member := self._membership.members.get(report.met.node_id))
        ]
        for report, node in known:
            self._doubt(node, report.corrupt)
        current = [(report, node) for report, node in known if report.met.epoch == node.epoch]
        if current:
            await self._nodes.add_experience([report.met for report, _ in current])
        silent = [node for report, node in current if report.silent]
        if silent:
            reporters = await self._nodes.report([node.id for node in silent], reporter)
            pairs = zip(silent, reporters, strict=True)
            self._accused |= {node.id: node for node, count in pairs if count >= REPORTERS_NEEDED}
            self._accusations.set()

    def _doubt(self, node: Node, digests: Sequence[Digest]) -> None:
        for digest in digests:
            if (node.id, digest) not in self._doubtful and len(self._doubtful) < DOUBTFUL_MAX:
                self._doubtful[node.id, digest] = node
                self._doubts.put_nowait((node.id, digest))

    async def verify_doubtful(self) -> None:
        """Have nodes read again what they are said to have sent wrong, a few blobs at a time, until cancelled."""
        async with asyncio.TaskGroup() as group:
            for _ in range(VERIFIED_AT_ONCE):
                group.create_task(self._verify_next())

    async def _verify_next(self) -> None:
        while True:
            doubt = await self._doubts.get()
            await self._verify(self._doubtful[doubt], doubt[1])
            del self._doubtful[doubt]

    async def judge_accused(self) -> None:
        """Probe those that several gateways accuse, each once for all of them, a few at a time, until cancelled."""
        while True:
            await self._accusations.wait()
            self._accusations.clear()
            while self._accused:
                some = [self._accused.pop(node_id) for node_id in list(self._accused)[:PROBES_AT_ONCE]]
                ready = [node for node in some if self._is_ready(node)]
                answers = await asyncio.gather(*(self._probe(node.address) for node in ready))
                await self._judge([node for node, answer in zip(ready, answers, strict=True) if answer is False])

    async def _judge(self, silent: Sequence[Node]) -> None:
        for node in silent:
            try:
                if await self._nodes.apply(Due(node.id, node.epoch, Event.REPORTED)):
                    log.warning("node_judged", node=node.id, reason=Event.REPORTED.value)
            except Unavailable:
                return

    def _is_ready(self, node: Node) -> bool:
        """Tell whether a node is READY still, under the same epoch."""
        member = self._membership.members.get(node.id)
        return member is not None and member.node.epoch == node.epoch and member.node.state is NodeState.READY
