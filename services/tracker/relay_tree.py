"""Who gets a blob from whom while it spreads: one tree per digest. Pure: holds and walks it, decides nothing.

Its roots are upstream, through the one host with the claim, and the nodes that have all of the blob. What a method
changes in the structure is noted in `changed`, so that a store can write just that.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from stafett.common.topology import Topology

NO_PARENT = ""


@dataclass(slots=True)
class Seat:
    """A host that is receiving the blob, or has just received all of it (`done`).

    `parent` is the node it gets the bytes from, `NO_PARENT` while it waits or fetches from upstream. Times are Unix
    seconds; `heard_at` is 0 until this replica has heard of the host. Nobody new follows a `blocked` one, which failed
    a follower, or a `slow` one, whose followers move away.
    """

    place: Topology
    parent: str = NO_PARENT
    received_bytes: int = 0
    bytes_per_second: float = 0.0
    seen_at: float = 0.0
    done: bool = False
    blocked: bool = False
    slow: bool = False
    behind: float = 0.0
    """How often in a row it has told that it is far behind its parent."""
    heard_at: float = 0.0

    @property
    def leaf(self) -> bool:
        """Whether nobody new may follow it."""
        return self.blocked or self.slow


@dataclass(frozen=True, slots=True)
class Claim:
    """The right to fetch from upstream; kept by growth beyond `from_bytes`."""

    node_id: str
    token: int
    from_bytes: int
    granted_at: float
    grew_at: float

    @property
    def fruitless(self) -> bool:
        """Whether it has not brought a single byte."""
        return self.grew_at == self.granted_at


@dataclass
class Tree:
    """The seats of one digest by node id, and its claim. `token` is the highest ever granted."""

    seats: dict[str, Seat] = field(default_factory=dict)
    claim: Claim | None = None
    token: int = 0
    size_bytes: int = 0
    awaited_since: float = 0.0
    """When the first claim was granted for which no byte has come yet; 0: none."""
    fruitless_claims: int = 0
    refused_until: float = 0.0
    version: int = 0
    changed: set[str] = field(default_factory=set)
    """Seats to be written or removed; `CLAIM` for everything else."""
    _children: dict[str, set[str]] = field(default_factory=dict)

    def sit(self, node_id: str, seat: Seat) -> Seat:
        """Add a seat."""
        self.seats[node_id] = seat
        self.changed.add(node_id)
        self._children.setdefault(seat.parent, set()).add(node_id)
        return seat

    def attach(self, node_id: str, parent: str) -> None:
        """Give a seat another parent; how fast it was with the old one says nothing any more."""
        seat = self.seats[node_id]
        if seat.parent != parent:
            self._children[seat.parent].discard(node_id)
            self._children.setdefault(parent, set()).add(node_id)
            seat.parent, seat.bytes_per_second, seat.behind = parent, 0.0, 0.0
            self.changed.add(node_id)

    def remove(self, node_id: str) -> None:
        """Take a seat away; its children keep their parent until they ask again."""
        seat = self.seats.pop(node_id, None)
        if seat is not None:
            self._children[seat.parent].discard(node_id)
            self.changed.add(node_id)

    def resume(self, now: float) -> None:
        """Go on with a tree that another replica may have decided about: hosts tell it progress that is not saved."""
        for seat in self.seats.values():
            seat.seen_at = max(seat.seen_at, now)
        if self.claim and not self.claim.fruitless:
            self.claim = replace(self.claim, grew_at=now)

    def forget_saved(self) -> None:
        """Nothing of it is saved (any more): all of it has changed."""
        self.version = 0
        self.changed = {CLAIM, *self.seats}

    def set_claim(self, claim: Claim | None) -> None:
        """Grant, keep or end the claim."""
        if (claim and claim.token) != (self.claim and self.claim.token):
            self.changed.add(CLAIM)
        self.claim = claim

    def children(self, node_id: str) -> frozenset[str]:
        """Tell who follows a node."""
        return frozenset(self._children.get(node_id, ()))

    def ancestors(self, node_id: str) -> tuple[str, ...]:
        """Path from a node's parent up to the root; ends where it would go round."""
        path: list[str] = []
        seat = self.seats.get(node_id)
        while seat is not None and seat.parent != NO_PARENT and seat.parent not in path and seat.parent != node_id:
            path.append(seat.parent)
            seat = self.seats.get(seat.parent)
        return tuple(path)

    def below(self, node_id: str) -> set[str]:
        """All that hang on a node, itself included."""
        found = {node_id}
        left = [node_id]
        while left:
            new = self._children.get(left.pop(), set()) - found
            found |= new
            left += new
        return found

    def outward(self, roots: list[str]) -> Iterator[tuple[str, int]]:
        """Yield all that get bytes through the given roots, with their depth, nearest first; roots have depth 0."""
        seen = set(roots)
        level, depth = roots, 0
        while level:
            yield from ((node_id, depth) for node_id in level)
            following = {child for node_id in level for child in self._children.get(node_id, ())}
            level, depth = sorted(following - seen), depth + 1
            seen |= following


CLAIM = "="
"""Stands in `Tree.changed` for claim, token and deadlines; no node id has this character."""
