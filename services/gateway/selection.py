"""Who serves: the only place where a holder is chosen. Pure; the caller brings beliefs, loads and randomness.

Algorithm `nearest`: by topology tier, inside a tier by power of two choices on the streams that this gateway has open
to each holder (Mitzenmacher, IEEE TPDS 2001).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from stafett.common.cluster import Holder, Node, NodeState
from stafett.common.topology import Tier, Topology, tier_between


@dataclass(frozen=True, slots=True)
class Asking:
    """The host that the content is for."""

    node_id: str
    topology: Topology


@dataclass(frozen=True, slots=True)
class Candidate:
    """A holder that may serve, and why it stands where it stands."""

    holder: Holder
    tier: Tier
    pending: int

    @property
    def node(self) -> Node:
        return self.holder.node


def usable(holders: Iterable[Holder], asking: Asking, believed: Mapping[str, Node]) -> list[Holder]:
    """Drop whom nobody should ask: ourselves, the incomplete, and those not READY as far as we know.

    Where `believed` (from Watch) knows a newer description of a node than the holder entry, that one counts, address
    included.
    """
    kept = []
    for holder in holders:
        node = holder.node
        newer = believed.get(node.id)
        if newer is not None and newer.rank > node.rank:
            node = newer
        if holder.complete and node.id != asking.node_id and node.state is NodeState.READY:
            kept.append(replace(holder, node=node))
    return kept


def rank_nearest(
    holders: Iterable[Holder],
    asking: Asking,
    believed: Mapping[str, Node],
    pending: Mapping[str, int],
    rng: random.Random,
) -> tuple[Candidate, ...]:
    """Order usable holders: nearest tier first, lightly loaded ones early inside it."""
    candidates = [
        Candidate(holder, tier_between(asking.topology, holder.node.topology), pending.get(holder.node.id, 0))
        for holder in usable(holders, asking, believed)
    ]
    ordered: list[Candidate] = []
    for tier in sorted({candidate.tier for candidate in candidates}):
        ordered += _two_choices([c for c in candidates if c.tier is tier], rng)
    return tuple(ordered)


Rank = Callable[[Iterable[Holder], Asking, Mapping[str, Node], Mapping[str, int], random.Random], tuple[Candidate, ...]]
"""What every selection algorithm looks like."""


def agreed_size(candidates: Iterable[Candidate]) -> int:
    """The blob size that most candidates state, the best ranked one's on a tie."""
    votes: dict[int, int] = {}
    for candidate in candidates:
        votes[candidate.holder.size_bytes] = votes.get(candidate.holder.size_bytes, 0) + 1
    return max(votes, key=lambda size: votes[size])


def _two_choices(tier: list[Candidate], rng: random.Random) -> list[Candidate]:
    left = sorted(tier, key=lambda candidate: candidate.node.id)
    ordered = []
    while left:
        picks = rng.sample(left, min(2, len(left)))
        best = min(picks, key=lambda candidate: candidate.pending)
        left.remove(best)
        ordered.append(best)
    return ordered
