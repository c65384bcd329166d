"""Who serves: the only place where a holder is chosen. Pure; the caller brings beliefs, observations and randomness.

Algorithms, by setting: `nearest` (tiers with spill, two choices by cost inside a tier: Mitzenmacher, IEEE TPDS 2001),
`least-loaded`, `rendezvous` (weighted: Thaler and Ravishankar, IEEE/ACM ToN 1998). Whoever fails is put last by each.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median

from stafett.common.cluster import Holder, Node, in_service
from stafett.common.digest import Digest
from stafett.common.topology import Tier, Topology, tier_between

SPILL_FACTOR = {Tier.HOST: 1.0, Tier.RACK: 1.0, Tier.ZONE: 3.0, Tier.REGION: 18.0, Tier.WORLD: 108.0}
"""How many times dearer than here something nearer may be: 3 from rack to zone, then 6 for each further tier."""
UNKNOWN_FIRST_BYTE_SECONDS = 0.005
UNKNOWN_SECONDS_PER_MIB = 0.02
NOMINAL_MIB = 8.0
"""Costs are the expected seconds for so much."""
SLOW_SHARE = 0.3
UNMEASURED_SECONDS_PER_MIB = 0.1
"""What a holder that nobody has measured should give at least, for a slow one to be left for it."""
FARTHER_FACTOR = 2.0
SCORE_FLOOR = 0.05


@dataclass(frozen=True, slots=True)
class Asking:
    """The host that the content is for."""

    node_id: str
    topology: Topology


@dataclass(frozen=True, slots=True)
class PeerView:
    """What a gateway has seen of a peer: streams open to it, seconds to the first byte and per MiB, failing or not."""

    pending: int = 0
    first_byte_seconds: float | None = None
    seconds_per_mib: float | None = None
    failing: bool = False


@dataclass(frozen=True, slots=True)
class Candidate:
    """A holder that may serve, and what speaks for it: `cost` = expected seconds x (pending + 1) / score.

    A `growing` one is receiving the blob itself.
    """

    holder: Holder
    tier: Tier
    pending: int = 0
    failing: bool = False
    score: float = 1.0
    first_byte_seconds: float = UNKNOWN_FIRST_BYTE_SECONDS
    seconds_per_mib: float = UNKNOWN_SECONDS_PER_MIB
    measured: bool = False
    """Whether somebody has measured the seconds per MiB, of it or of its tier."""
    growing: bool = False

    @property
    def node(self) -> Node:
        return self.holder.node

    @property
    def cost(self) -> float:
        expected = self.first_byte_seconds + NOMINAL_MIB * self.seconds_per_mib
        return expected * (self.pending + 1) / self.score

    @property
    def load(self) -> float:
        """Share of the holder's stream slots in use, as far as it has told and we know."""
        health = self.node.health
        told = health.active_streams / health.stream_limit if health and health.stream_limit else 0.0
        return max(told, self.pending / (health.stream_limit if health and health.stream_limit else 64))


def usable(holders: Iterable[Holder], asking: Asking, believed: Mapping[str, Node]) -> list[Holder]:
    """Drop whom nobody should ask: ourselves, and those out of service as far as we know.

    Where `believed` (from Watch) knows a newer description of a node than the holder entry, that one counts, address
    included; health and score stay the entry's.
    """
    kept = []
    for holder in holders:
        node = holder.node
        newer = believed.get(node.id)
        if newer is not None and newer.rank > node.rank:
            node = replace(newer, health=node.health, score=node.score)
        if node.id != asking.node_id:
            kept.append(replace(holder, node=node))
    return in_service(kept)


def weigh(holders: Sequence[Holder], asking: Asking, seen: Mapping[str, PeerView]) -> list[Candidate]:
    """Put everything that is known about usable holders together, by node id.

    Seconds come from what this gateway saw, else from what others reported, else from its tier's median, else they are
    guessed: a peer that nobody knows is neither avoided nor preferred.
    """
    tiers = {holder.node.id: tier_between(asking.topology, holder.node.topology) for holder in holders}
    first_byte = _measured(holders, tiers, lambda node: _known(seen, node).first_byte_seconds)
    per_mib = _measured(
        holders,
        tiers,
        lambda node: _known(seen, node).seconds_per_mib or (node.score.seconds_per_mib if node.score else None) or None,
    )
    return [
        Candidate(
            holder,
            tiers[holder.node.id],
            _known(seen, holder.node).pending,
            _known(seen, holder.node).failing,
            max(SCORE_FLOOR, holder.node.score.total) if holder.node.score else 1.0,
            first_byte.get(holder.node.id, UNKNOWN_FIRST_BYTE_SECONDS),
            per_mib.get(holder.node.id, UNKNOWN_SECONDS_PER_MIB),
            holder.node.id in per_mib,
        )
        for holder in sorted(holders, key=lambda holder: holder.node.id)
    ]


def _known(seen: Mapping[str, PeerView], node: Node) -> PeerView:
    return seen.get(node.id, PeerView())


def _measured(
    holders: Sequence[Holder], tiers: Mapping[str, Tier], of: Callable[[Node], float | None]
) -> dict[str, float]:
    """Tell by node id what was measured of it, or of its tier; those of tiers that nobody measured are left out."""
    known = {holder.node.id: value for holder in holders if (value := of(holder.node)) is not None}
    by_tier = {
        tier: median(value for node_id, value in known.items() if tiers[node_id] is tier)
        for tier in {tiers[node_id] for node_id in known}
    }
    return {node_id: known.get(node_id, by_tier.get(tier, 0.0)) for node_id, tier in tiers.items() if tier in by_tier}


def nearest(candidates: Sequence[Candidate], digest: Digest, rng: random.Random) -> list[Candidate]:
    """Nearest tier first, unless its best is so much dearer than a farther one's; inside a tier two choices by cost."""
    by_cost = sorted(_tiers(candidates), key=lambda tier: min(map(_dearness, tier)))
    return [candidate for tier in by_cost for candidate in _two_choices(tier, rng)]


def least_loaded(candidates: Sequence[Candidate], digest: Digest, rng: random.Random) -> list[Candidate]:
    """Fewest streams first, wherever they are; the cheaper of equals."""
    shuffled = rng.sample(candidates, len(candidates))
    return sorted(shuffled, key=lambda candidate: (candidate.load, candidate.tier, candidate.cost))


def rendezvous(candidates: Sequence[Candidate], digest: Digest, rng: random.Random) -> list[Candidate]:
    """Inside a tier all gateways prefer the same holder for a digest, in proportion to its score.

    Nearest tier first, unless the one preferred there is so much dearer than the one preferred in a farther tier.
    """
    ordered = [sorted(tier, key=lambda each: -_rendezvous_weight(digest, each)) for tier in _tiers(candidates)]
    return [candidate for tier in sorted(ordered, key=lambda tier: _dearness(tier[0])) for candidate in tier]


def _tiers(candidates: Sequence[Candidate]) -> list[list[Candidate]]:
    tiers: dict[Tier, list[Candidate]] = {}
    for candidate in candidates:
        tiers.setdefault(candidate.tier, []).append(candidate)
    return list(tiers.values())


def _dearness(candidate: Candidate) -> tuple[float, Tier]:
    """Cost as it counts against holders of other tiers."""
    return candidate.cost * SPILL_FACTOR[candidate.tier], candidate.tier


def _rendezvous_weight(digest: Digest, candidate: Candidate) -> float:
    hashed = hashlib.blake2b(f"{digest} {candidate.node.id}".encode(), digest_size=8).digest()
    uniform = (int.from_bytes(hashed, "big") + 1) / (2**64 + 1)
    return -candidate.score / math.log(uniform)


Algorithm = Callable[[Sequence[Candidate], Digest, random.Random], list[Candidate]]
ALGORITHMS: Mapping[str, Algorithm] = {"nearest": nearest, "least-loaded": least_loaded, "rendezvous": rendezvous}


def rank(
    algorithm: Algorithm, candidates: Sequence[Candidate], digest: Digest, rng: random.Random
) -> tuple[Candidate, ...]:
    """Order candidates by an algorithm; those that keep failing come last, as a last resort."""
    healthy = [candidate for candidate in candidates if not candidate.failing]
    failing = [candidate for candidate in candidates if candidate.failing]
    return (*algorithm(healthy, digest, rng), *algorithm(failing, digest, rng))


def worth_leaving(
    serving: Candidate, seconds_per_mib: float, best_seconds_per_mib: float, other: Candidate, streams_open: int
) -> bool:
    """Tell whether a stream at this pace is left for another holder: it gives under 30 % of what that one should.

    Args:
        best_seconds_per_mib: the stream's own best pace, infinite at first: what it gave, one that nobody has measured
            should give too.
        streams_open: streams of this gateway, which share its link with the one that would be opened.
    """
    usual = other.seconds_per_mib if other.measured else min(best_seconds_per_mib, UNMEASURED_SECONDS_PER_MIB)
    expected = usual * max(other.pending + 1, streams_open) * (FARTHER_FACTOR if other.tier > serving.tier else 1.0)
    return not other.failing and seconds_per_mib * SLOW_SHARE > expected


def why_first(ranked: Sequence[Candidate], algorithm: Algorithm) -> str:
    """Say in words why the first of a ranking is first."""
    if not ranked:
        return "nobody can serve it"
    first = ranked[0]
    rivals = [candidate for candidate in ranked[1:] if candidate.failing is first.failing]
    if first.failing:
        return "all holders keep failing, this one is tried as a last resort"
    if not rivals:
        return "the only holder"
    if algorithm is least_loaded:
        return "the fewest streams for its slots, wherever it is"
    nearer = [candidate for candidate in rivals if candidate.tier < first.tier]
    if nearer:
        best = nearer[0] if algorithm is rendezvous else min(nearer, key=lambda candidate: candidate.cost)
        limit = SPILL_FACTOR[first.tier] / SPILL_FACTOR[best.tier]
        return f"spilled: {best.node.id} is nearer, but {best.cost / first.cost:.1f} times dearer (limit {limit:g})"
    if all(candidate.tier is not first.tier for candidate in rivals):
        return f"the only holder in the nearest tier ({first.tier.name.lower()})"
    drawn = "the digest's own choice there" if algorithm is rendezvous else "the cheaper of two drawn there"
    return f"nearest tier ({first.tier.name.lower()}), {drawn}"


def agreed_size(candidates: Iterable[Candidate]) -> int:
    """The blob size that most candidates state, the best ranked one's on a tie."""
    votes: dict[int, int] = {}
    for candidate in candidates:
        votes[candidate.holder.size_bytes] = votes.get(candidate.holder.size_bytes, 0) + 1
    return max(votes, key=lambda size: votes[size])


def _two_choices(tier: Sequence[Candidate], rng: random.Random) -> list[Candidate]:
    left = sorted(tier, key=lambda candidate: candidate.node.id)
    ordered = []
    while left:
        picks = rng.sample(left, min(2, len(left)))
        best = min(picks, key=lambda candidate: candidate.cost)
        left.remove(best)
        ordered.append(best)
    return ordered
