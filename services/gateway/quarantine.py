"""Holders that had a part in wrong bytes of a digest: not asked for it again for a while.

Who sent all of a wrong blob has lied. Of several who sent a part each, most are honest: a suspect is acquitted when its
node has read its copy again and found it right. Once: who is suspected again after that is not believed any more.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

from stafett.common.digest import Digest

QUARANTINE_SECONDS = 300.0
_ENTRIES_MAX = 10_000


class Guilt(Enum):
    """What is known of one that had a part in wrong bytes."""

    SUSPECTED = "suspected"
    PROVEN = "proven"
    ACQUITTED = "acquitted"


@dataclass(frozen=True, slots=True)
class _Entry:
    guilt: Guilt
    until: float


class Quarantine:
    """Pairs of digest and node, each for five minutes."""

    def __init__(self) -> None:
        self._entries: OrderedDict[tuple[Digest, str], _Entry] = OrderedDict()

    def add(self, digest: Digest, node_ids: Iterable[str], *, proven: bool) -> None:
        """Stop asking these nodes for the digest; `proven`: there is no doubt about who lied."""
        for node_id in node_ids:
            known = proven or self._guilt(digest, node_id) in (Guilt.PROVEN, Guilt.ACQUITTED)
            self._set(digest, node_id, Guilt.PROVEN if known else Guilt.SUSPECTED)

    def acquit(self, digest: Digest, node_id: str) -> None:
        """The copy of a suspect is right: it may be asked again."""
        self._set(digest, node_id, Guilt.ACQUITTED)

    def __contains__(self, pair: tuple[Digest, str]) -> bool:
        return self._guilt(*pair) in (Guilt.SUSPECTED, Guilt.PROVEN)

    def doubtful(self, digest: Digest, node_id: str) -> bool:
        """Tell whether a node is not asked, but may be honest."""
        return self._guilt(digest, node_id) is Guilt.SUSPECTED

    def nodes(self, digest: Digest) -> list[str]:
        """List the nodes that are not asked for a digest."""
        return [node_id for each, node_id in self._entries if each == digest and (each, node_id) in self]

    def _guilt(self, digest: Digest, node_id: str) -> Guilt | None:
        entry = self._entries.get((digest, node_id))
        return entry.guilt if entry is not None and entry.until > time.monotonic() else None

    def _set(self, digest: Digest, node_id: str, guilt: Guilt) -> None:
        self._entries[digest, node_id] = _Entry(guilt, time.monotonic() + QUARANTINE_SECONDS)
        while len(self._entries) > _ENTRIES_MAX:
            self._entries.popitem(last=False)
