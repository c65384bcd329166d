"""Decides which of the holders found in the index an asker is told of, and in what order. Pure."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from urllib.parse import quote

from stafett.common.cluster import Holder, Node, in_service
from stafett.common.topology import Tier, Topology, tier_between


@dataclass(frozen=True, slots=True)
class Member:
    """A node, and the random number of its running process: holdings of another incarnation are void.

    `drain_ordered` tells whether an operator wants that process out of service.
    """

    node: Node
    incarnation: int
    drain_ordered: bool = False


@dataclass(frozen=True, slots=True)
class Entry:
    """What the index says: under `epoch`, `incarnation` of the node announced a blob."""

    node_id: str
    epoch: int
    incarnation: int
    size_bytes: int

    def void(self, member: Member | None) -> bool:
        """Tell whether a later process of the node has replaced the one that announced it."""
        return member is not None and member.incarnation != self.incarnation and self.epoch < member.node.epoch


def bucket_of(topology: Topology) -> str:
    """Name the index bucket of a place: its quoted parts, joined by '/'."""
    return "/".join(quote(part, safe="") for part in (topology.region, topology.zone, topology.rack))


def reserve_for_far(most: int) -> int:
    """How many of `most` holders each farther tier may add, so that a whole dead rack does not hide the rest."""
    return max(1, most // 4)


def choose(
    entries: Iterable[Entry],
    members: Mapping[str, Member],
    asker_id: str,
    place: Topology,
    most: int,
    rng: random.Random,
) -> tuple[Holder, ...]:
    """Pick at most `most` holders in service, nearest tier first, in random order within a tier.

    The nearest tiers fill all places but a reserve, which goes to the farthest tiers as far as these have holders.
    """
    holding = [
        Holder(member.node, entry.size_bytes)
        for entry in entries
        if (member := members.get(entry.node_id))
        and member.incarnation == entry.incarnation
        and entry.node_id != asker_id
    ]
    tiers: dict[Tier, list[Holder]] = {}
    for holder in in_service(holding):
        tiers.setdefault(tier_between(place, holder.node.topology), []).append(holder)
    ordered: list[Holder] = []
    farther = sum(len(holders) for holders in tiers.values())
    for tier in sorted(tiers):
        holders = tiers[tier]
        rng.shuffle(holders)
        farther -= len(holders)
        places = most - len(ordered)
        ordered += holders[: places - min(farther, reserve_for_far(most), places - 1)]
        if len(ordered) >= most:
            break
    return tuple(ordered)
