"""What all transfers of a gateway share: how holders are found, ranked, read and remembered."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass, field

from stafett.common.cluster import Holder
from stafett.common.digest import Digest
from stafett.gateway.hedging import Hedging
from stafett.gateway.locator import Locator
from stafett.gateway.metrics import GatewayMetrics
from stafett.gateway.outcomes import Outcomes
from stafett.gateway.peer_book import PeerBook
from stafett.gateway.ports import PeerReader
from stafett.gateway.quarantine import Quarantine
from stafett.gateway.selection import Algorithm, Asking, Candidate, rank, usable, weigh


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
        """Rank the holders of a digest that may be asked."""
        located = await self.locator.locate([digest], fresh=fresh)
        return self.ranked(digest, located[digest])

    def ranked(self, digest: Digest, holders: Iterable[Holder]) -> tuple[Candidate, ...]:
        """Rank holders by what is known now."""
        trusted = [holder for holder in holders if (digest, holder.node.id) not in self.quarantine]
        asked = usable(trusted, self.asking, self.book.nodes)
        seen = {holder.node.id: self.book.view(holder.node) for holder in asked}
        return rank(self.algorithm, weigh(asked, self.asking, seen), digest, self.rng)
