"""Relay trees in Redis: a hash per digest, changed by compare-and-set on its version.

What a tracker remembers of progress is not written: hosts tell it again every second. The structure is, so that another
tracker can go on with it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import cast

from stafett.common.digest import Digest
from stafett.common.topology import Topology
from stafett.tracker.redis_link import RedisLink
from stafett.tracker.relay_tree import CLAIM, Claim, Seat, Tree

KEEP_SECONDS = 120
_VERSION = "#"


class TreeStore:
    """Adapter of the trees. Every method raises `Unavailable` while Redis is away."""

    def __init__(self, link: RedisLink) -> None:
        self._link = link

    @property
    def available(self) -> bool:
        """How the last exchange with Redis ended."""
        return self._link.available

    async def load(self, digest: Digest) -> Tree:
        """Read a tree; an empty one if there is none."""
        [found] = await self._link.commands([("HGETALL", _key(digest))])
        fields = cast(Mapping[str, str], found)
        tree = Tree()
        for name, text in fields.items():
            if name == _VERSION:
                tree.version = int(text)
            elif name == CLAIM:
                _read_head(tree, json.loads(text))
            else:
                tree.sit(name, _seat(json.loads(text)))
        tree.changed.clear()
        return tree

    async def save(self, digest: Digest, tree: Tree) -> bool:
        """Write what has changed; False if somebody else has changed the tree, then nothing is written."""
        names = sorted(tree.changed | {CLAIM})
        removed = [name for name in names if name != CLAIM and name not in tree.seats]
        fields = [word for name in names if name not in removed for word in (name, _text(tree, name))]
        args: list[str | int] = [tree.version, KEEP_SECONDS, len(fields) // 2, *fields, *removed]
        verdict, *version = await self._link.run("save_tree", [_key(digest)], args)
        if verdict == "0":
            return False
        tree.version = int(version[0])
        tree.changed.clear()
        return True


def _key(digest: Digest) -> str:
    return f"stafett:tree:{{{digest.hex}}}"


def _text(tree: Tree, name: str) -> str:
    if name == CLAIM:
        head = {
            "claim": asdict(tree.claim) if tree.claim else None,
            "token": tree.token,
            "size_bytes": tree.size_bytes,
            "awaited_since": tree.awaited_since,
            "fruitless_claims": tree.fruitless_claims,
            "refused_until": tree.refused_until,
        }
        return json.dumps(head)
    seat = tree.seats[name]
    place = seat.place
    told = (seat.parent, seat.received_bytes, seat.seen_at, seat.done, seat.blocked, seat.slow)
    return json.dumps([place.region, place.zone, place.rack, *told])


def _read_head(tree: Tree, head: Mapping[str, object]) -> None:
    claim = head.pop("claim", None) if isinstance(head, dict) else None
    tree.claim = Claim(**claim) if claim else None
    for name, value in head.items():
        setattr(tree, name, value)


def _seat(words: list[object]) -> Seat:
    region, zone, rack, parent, received, seen_at, done, blocked, slow = words
    place = Topology(str(region), str(zone), str(rack))
    return Seat(
        place, str(parent), cast(int, received), 0.0, cast(float, seen_at), bool(done), bool(blocked), bool(slow)
    )
