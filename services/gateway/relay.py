"""What all transfers of a gateway share: how holders are found, ranked, read and remembered."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterable
from dataclasses import dataclass, field

import structlog

from stafett.common.cluster import Holder, Node
from stafett.common.digest import Digest
from stafett.common.errors import StafettError
from stafett.gateway.hedging import Hedging
from stafett.gateway.locator import Locator
from stafett.gateway.metrics import GatewayMetrics
from stafett.gateway.outcomes import Outcomes
from stafett.gateway.peer_book import PeerBook
from stafett.gateway.ports import PeerReader
from stafett.gateway.quarantine import Quarantine
from stafett.gateway.selection import Algorithm, Asking, Candidate, rank, usable, weigh

log = structlog.get_logger()

VERDICT_SECONDS = 1.0
"""So long a request waits for suspects to read their copies again, when nobody else can serve it."""


@dataclass
class Relay:
    """What all transfers of a gateway share."""

    locator: Locator
    reader: PeerReader
    algorithm: Algorithm
    asking: Asking
    quarantine: Quarantine
    stall_timeout_seconds: float
    metrics: GatewayMetrics
    outcomes: Outcomes
    rng: random.Random
    book: PeerBook = field(default_factory=PeerBook)
    hedging: Hedging = field(default_factory=Hedging)

    async def candidates(self, digest: Digest, *, fresh: bool = False) -> tuple[Candidate, ...]:
        """Rank the holders of a digest that may be asked; when nobody is left, or `fresh`, suspects are heard first."""
        holders = (await self.locator.locate([digest], fresh=fresh))[digest]
        ranked = self.ranked(digest, holders)
        if ranked and not fresh:
            return ranked
        await self.hear(digest, [holder.node for holder in holders], VERDICT_SECONDS)
        return self.ranked(digest, holders)

    async def hear(self, digest: Digest, nodes: Iterable[Node], seconds: float) -> None:
        """Have suspects among these nodes read their copies of a digest again; who has it right is trusted again."""
        suspects = [node for node in nodes if self.quarantine.doubtful(digest, node.id)]
        await asyncio.gather(*(self._hear(digest, node, seconds) for node in suspects))

    async def _hear(self, digest: Digest, suspect: Node, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                intact = await self.reader.verify(suspect, digest)
        except (StafettError, TimeoutError) as error:
            log.info("suspect_not_heard", node=suspect.id, digest=str(digest), reason=str(error))
            return
        log.info("suspect_heard", node=suspect.id, digest=str(digest), intact=intact)
        if intact:
            self.quarantine.acquit(digest, suspect.id)
        else:
            self.quarantine.add(digest, [suspect.id], proven=True)

    def ranked(self, digest: Digest, holders: Iterable[Holder]) -> tuple[Candidate, ...]:
        """Rank holders by what is known now."""
        trusted = [holder for holder in holders if (digest, holder.node.id) not in self.quarantine]
        asked = usable(trusted, self.asking, self.book.nodes)
        seen = {holder.node.id: self.book.view(holder.node) for holder in asked}
        return rank(self.algorithm, weigh(asked, self.asking, seen), digest, self.rng)
