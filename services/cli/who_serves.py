"""Asks the trackers who has a digest, and ranks them by the gateway's own code.

What only a host's gateway knows, its open streams and its breakers, is not in it: the answer is that of an idle one.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from stafett.api.v1 import tracker_pb2, tracker_pb2_grpc
from stafett.cli.trackers import CALL_SECONDS
from stafett.common import wire
from stafett.common.cluster import Holder, Node
from stafett.common.digest import Digest
from stafett.common.topology import Topology
from stafett.gateway.selection import ALGORITHMS, Algorithm, Asking, Candidate, rank, usable, weigh, why_first

HOLDERS_MAX = 64
"""Trackers tell of so many, the nearest."""
DRAWS = 200


@dataclass(frozen=True)
class Answer:
    """Who has a digest (nearest first), and whom the asking host would ask, in which order; nobody asks without one."""

    holders: Sequence[Holder]
    candidates: Sequence[Candidate]
    own: bool
    """Whether the asking host has it itself."""
    reason: str
    stale: bool

    @property
    def more(self) -> bool:
        """Whether there may be further holders."""
        return len(self.holders) >= HOLDERS_MAX


def who_serves(stub: tracker_pb2_grpc.TrackerServiceStub, host: Node | None, algorithm: str, digest: Digest) -> Answer:
    """Find a digest's holders, and rank them as the host's gateway would."""
    place = host.topology if host else Topology()
    request = tracker_pb2.LocateRequest(
        digests=[str(digest)], topology=wire.topology_to_wire(place), max_holders=HOLDERS_MAX
    )
    located = stub.Locate(request, timeout=CALL_SECONDS)
    holders = wire.located_from_wire(located)[digest]
    if host is None:
        return Answer(holders, (), False, "", located.stale)
    if any(holder.node.id == host.id for holder in holders):
        return Answer(holders, (), True, f"{host.id} has it: its container runtime does not ask", located.stale)
    asking, chosen = Asking(host.id, place), ALGORITHMS[algorithm]
    ranked, reason = usual_ranking(chosen, weigh(usable(holders, asking, {}), asking, {}), digest)
    return Answer(holders, ranked, False, reason, located.stale)


def usual_ranking(
    algorithm: Algorithm, candidates: Sequence[Candidate], digest: Digest
) -> tuple[tuple[Candidate, ...], str]:
    """Rank as a gateway does most often, and say why the first is first; where chance decides, also how often it is."""
    rankings = [rank(algorithm, candidates, digest, random.Random(seed)) for seed in range(DRAWS if candidates else 1)]
    firsts = Counter(ranking[0].node.id for ranking in rankings if ranking)
    usual = max(rankings, key=lambda ranking: firsts[ranking[0].node.id] if ranking else 0)
    reason = why_first(usual, algorithm)
    if len(firsts) > 1:
        reason += f", in {firsts[usual[0].node.id] / DRAWS:.0%} of {DRAWS} draws"
    return usual, reason
