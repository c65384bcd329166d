"""Where in a tree a host is put: wide or deep, which parent. Pure; the simulator runs the same code.

With links of B bytes/s both ways a parent with f followers gives each B/f, so a tree takes about f x S/B + h x depth
for a blob of S bytes, with a delay of h per hop: chains for large blobs, wide trees for small ones. A zone is entered
once: whoever has someone of its own zone in the tree gets the bytes there.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Container, Iterable, Mapping

from stafett.common.topology import Topology
from stafett.tracker.relay_tree import NO_PARENT, Tree

HOP_SECONDS = 0.005
HOP_BYTES = 2 * 1024 * 1024
"""What a hop adds, as the relay benchmark measures it: containerd writes, and so passes on, whole mebibytes only."""
LINK_BYTES_PER_SECOND = 125_000_000.0
"""Taken for B until a host has shown what it gets: 1 Gbit/s."""
FAN_OUT_MAX = 16
LEAF_SHARE = 0.5
"""What a slow or failing follower costs its parent in a chain, where there is nobody else to go to."""


def fan_out(size_bytes: int, hosts: int, link_bytes_per_second: float = LINK_BYTES_PER_SECOND) -> int:
    """Choose how many followers a parent gets: the f that minimises f x S/B + h x depth of a tree of so many hosts."""
    seconds, hop = size_bytes / link_bytes_per_second, hop_seconds(link_bytes_per_second)

    def cost(f: int) -> float:
        depth = hosts if f == 1 else math.log(hosts * (f - 1) + 1, f)
        return f * seconds + hop * depth

    return min(range(1, FAN_OUT_MAX + 1), key=cost)


def hop_seconds(link_bytes_per_second: float) -> float:
    """Tell by how much a follower lags behind its parent on a link."""
    return HOP_SECONDS + HOP_BYTES / link_bytes_per_second


class Openings:
    """The parents that a tree offers now, best first; made anew for each batch of askers."""

    def __init__(
        self,
        tree: Tree,
        complete: Mapping[str, Topology],
        in_service: Callable[[str], bool],
        link_bytes_per_second: float = LINK_BYTES_PER_SECOND,
    ) -> None:
        self._tree = tree
        self._loads: dict[str, float] = {}
        self._depths: dict[str, int] = {}
        self._places: dict[str, Topology] = {}
        self._exits: dict[Topology, set[tuple[str, str]]] = {}
        self._by_zone: dict[Topology, list[tuple[bool, float, int, str]]] = {}
        receiving = sum(1 for seat in tree.seats.values() if not seat.done)
        self.fan_out = fan_out(tree.size_bytes, max(2, receiving), link_bytes_per_second)
        for node_id, depth in tree.outward(_roots(tree, complete)):
            seat = tree.seats.get(node_id)
            if not in_service(node_id) or (seat and seat.leaf and node_id not in complete):
                continue
            self._places[node_id] = seat.place if seat else complete[node_id]
            self._depths[node_id] = depth
            self._note(node_id)

    def in_order(self, places: Iterable[tuple[str, Topology]], last: Container[str]) -> list[str]:
        """Put hosts that ask together into the order of their placement: rack by rack, the unsteady ones at the end.

        Zones that are in the tree come first, so that the way into another one starts at the end of a chain, not in it.
        """

        def key(each: tuple[str, Topology]) -> tuple[bool, bool, Topology, str]:
            node_id, place = each
            return node_id in last, zone_of(place) not in self._by_zone, place, node_id

        return [node_id for node_id, _ in sorted(places, key=key)]

    def take(self, place: Topology, barred: Container[str], may_move: Callable[[str], bool]) -> tuple[str, str] | None:
        """Choose a parent for a host at a place, and count it as taken; None if all are barred.

        In its own zone, in its own rack before another; where nobody there has room, between one and its follower in
        another zone, if that one may be moved (the second name: it follows the newcomer then); else the nearest with
        room, else the least loaded.
        """
        zone = zone_of(place)
        best = [self._best_at(zone, place, barred, distance) for distance in range(3)]
        if best[0] and best[0][0] and (exit_ := self._way_out(zone, barred, may_move)):
            return exit_
        offers = [offer for offer in best if offer]
        if not offers:
            return None
        node_id = next((offer for offer in offers if not offer[0]), offers[0])[-1]
        self._loads[node_id] += 1
        self._offer(node_id)
        return node_id, NO_PARENT

    def add(self, node_id: str, place: Topology, parent: str) -> None:
        """Offer a host that has just been placed below a parent."""
        self._places[node_id] = place
        self._depths[node_id] = self._depths.get(parent, 0) + 1
        self._note(node_id)
        if parent in self._places:
            self._note_exits(parent)

    def _note(self, node_id: str) -> None:
        self._loads[node_id] = load(self._tree, node_id, LEAF_SHARE if self.fan_out == 1 else 1.0)
        self._offer(node_id)
        self._note_exits(node_id)

    def _note_exits(self, node_id: str) -> None:
        zone = zone_of(self._places[node_id])
        for child in self._tree.children(node_id):
            seat = self._tree.seats[child]
            if not seat.done and zone_of(seat.place) != zone:
                self._exits.setdefault(zone, set()).add((node_id, child))

    def _way_out(
        self, zone: Topology, barred: Container[str], may_move: Callable[[str], bool]
    ) -> tuple[str, str] | None:
        for parent, child in sorted(self._exits.get(zone, ())):
            seat = self._tree.seats.get(child)
            if seat is None or seat.parent != parent:
                self._exits[zone].discard((parent, child))
            elif parent not in barred and child not in barred and may_move(child):
                return parent, child
        return None

    def _best_at(
        self, zone: Topology, place: Topology, barred: Container[str], distance: int
    ) -> tuple[bool, bool, float, int, str] | None:
        zones = [other for other in self._by_zone if _distance(zone, other) == distance]
        return min(filter(None, (self._best(other, place, barred) for other in zones)), default=None)

    def _offer(self, node_id: str) -> None:
        heapq.heappush(self._by_zone.setdefault(zone_of(self._places[node_id]), []), self._key(node_id))

    def _key(self, node_id: str) -> tuple[bool, float, int, str]:
        load = self._loads[node_id]
        full = load >= self.fan_out
        return full, load if full else 0.0, self._depths[node_id], node_id

    def _best(
        self, zone: Topology, place: Topology, barred: Container[str]
    ) -> tuple[bool, bool, float, int, str] | None:
        """Best of a zone: with room, in the same rack, least loaded, nearest to the root."""
        offers = self._by_zone[zone]
        aside: list[tuple[bool, float, int, str]] = []
        best: tuple[bool, bool, float, int, str] | None = None
        looked_at = 0
        while offers and looked_at < _LOOK_AT:
            full, load, depth, node_id = offer = heapq.heappop(offers)
            if offer != self._key(node_id):
                continue
            aside.append(offer)
            if node_id in barred:
                continue
            looked_at += 1
            candidate = (full, self._places[node_id].rack != place.rack, load, depth, node_id)
            best = candidate if best is None else min(best, candidate)
            if full and not best[0]:
                break
        for offer in aside:
            heapq.heappush(offers, offer)
        return best


_LOOK_AT = 64
"""So many offers of a zone are compared for the sake of racks."""


def _roots(tree: Tree, complete: Mapping[str, Topology]) -> list[str]:
    done = [node_id for node_id, seat in tree.seats.items() if seat.done and node_id not in complete]
    fetching = [tree.claim.node_id] if tree.claim and _has_bytes(tree, tree.claim.node_id) else []
    return [*complete, *done, *(node_id for node_id in fetching if node_id not in complete)]


def _has_bytes(tree: Tree, node_id: str) -> bool:
    seat = tree.seats.get(node_id)
    return seat is not None and seat.received_bytes > 0


def load(tree: Tree, node_id: str, leaf_share: float = 1.0) -> float:
    """Tell how many followers a node has to feed; one that is slow or failing counts as a share."""
    seats = [seat for child in tree.children(node_id) if (seat := tree.seats.get(child)) and not seat.done]
    return sum(leaf_share if seat.leaf else 1.0 for seat in seats)


def _distance(zone: Topology, other: Topology) -> int:
    """0 in the same zone, 1 in the same region, 2 elsewhere."""
    return 0 if zone == other else 1 if zone.region == other.region else 2


def zone_of(place: Topology) -> Topology:
    """Tell a place without its rack."""
    return Topology(place.region, place.zone)
