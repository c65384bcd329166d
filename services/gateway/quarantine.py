"""Holders that sent wrong bytes of a digest: not asked for it again for a while."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Iterable

from stafett.common.digest import Digest

QUARANTINE_SECONDS = 300.0
_ENTRIES_MAX = 10_000


class Quarantine:
    """Pairs of digest and node, each for five minutes."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._until: OrderedDict[tuple[Digest, str], float] = OrderedDict()

    def add(self, digest: Digest, node_ids: Iterable[str]) -> None:
        """Stop asking these nodes for the digest."""
        for node_id in node_ids:
            self._until[digest, node_id] = self._clock() + QUARANTINE_SECONDS
        while len(self._until) > _ENTRIES_MAX:
            self._until.popitem(last=False)

    def __contains__(self, pair: tuple[Digest, str]) -> bool:
        return self._until.get(pair, 0.0) > self._clock()

    def nodes(self, digest: Digest) -> list[str]:
        """List the nodes that are not asked for a digest."""
        now = self._clock()
        return [node_id for (each, node_id), until in self._until.items() if each == digest and until > now]
