"""The health of nodes as this replica last read it: scores for answers, a little old rather than slow."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from statistics import median

from stafett.common.cluster import Node
from stafett.common.errors import Unavailable
from stafett.tracker.health_score import Vitals, score
from stafett.tracker.membership_store import MembershipStore

FRESH_SECONDS = 2.0
_ENTRIES_MAX = 20_000


@dataclass(frozen=True, slots=True)
class _Entry:
    vitals: Vitals
    read_at: float


class HealthView:
    """Vitals by node id, read when somebody asks and not twice within two seconds."""

    def __init__(self, store: MembershipStore, weights: Mapping[str, float]) -> None:
        self._store = store
        self._weights = weights
        self._entries: dict[str, _Entry] = {}
        self._usual = 0.0
        self._usual_until = 0.0

    async def describe(self, nodes: Iterable[Node], *, redis_up: bool) -> list[Node]:
        """Return the nodes with health and score, as they were at most two seconds ago while Redis is there."""
        wanted = list(nodes)
        now = time.monotonic()
        old = [node.id for node in wanted if not self._is_fresh(node.id, now)]
        if old and redis_up:
            try:
                found = await self._store.vitals(old)
                self._replace(old, found, now)
            except Unavailable:
                pass
        return [self._described(node) for node in wanted]

    def _replace(self, asked: list[str], found: Mapping[str, Vitals], now: float) -> None:
        """Put in what was found for those asked for; who has no lease any more goes."""
        if len(self._entries) > _ENTRIES_MAX:
            self._entries = {node_id: entry for node_id, entry in self._entries.items() if self._is_fresh(node_id, now)}
        for node_id in asked:
            self._entries.pop(node_id, None)
        self._entries.update({node_id: _Entry(vitals, now) for node_id, vitals in found.items()})
        if now >= self._usual_until:
            self._usual, self._usual_until = self._usual_seconds(), now + FRESH_SECONDS

    def _is_fresh(self, node_id: str, now: float) -> bool:
        entry = self._entries.get(node_id)
        return entry is not None and now - entry.read_at < FRESH_SECONDS

    def _usual_seconds(self) -> float:
        met = (entry.vitals.experience for entry in self._entries.values())
        known = [experience.usual_seconds for experience in met if experience and experience.usual_seconds]
        return median(known) if known else 0.0

    def _described(self, node: Node) -> Node:
        entry = self._entries.get(node.id)
        if entry is None:
            return node
        vitals = replace(entry.vitals, flaps=node.flaps)
        return replace(node, health=vitals.sample, score=score(vitals, self._usual, self._weights))
