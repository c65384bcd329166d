"""This replica's view of all nodes: a snapshot kept up to date by Redis' event stream, and those who watch it.

Never changes a node's state itself. Goes on with what it knew while Redis is away, and while nodes refill a Redis that
has lost its data.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass

import structlog

from stafett.common.cluster import Node
from stafett.common.errors import Unavailable
from stafett.tracker.membership_store import Change, MembershipStore, Scan, Snapshot
from stafett.tracker.proximity import Member

log = structlog.get_logger()

WATCH_QUEUE_MAX = 256
WATCH_SIGN_SECONDS = 2.0
"""So often a watcher without news gets an empty step, so that it notices a frozen tracker."""
_RETRY_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class WatchStep:
    """All nodes at a revision, the one that has changed with it, or none as a sign of life."""

    revision: int
    nodes: tuple[Node, ...]
    snapshot: bool


class _Watcher:
    """One watcher's changes that it has not taken yet; too many of them give way to a snapshot."""

    def __init__(self) -> None:
        self.changes: deque[WatchStep] = deque()
        self.wants_snapshot = True
        self.news = asyncio.Event()
        self.news.set()

    def put(self, step: WatchStep) -> None:
        if len(self.changes) >= WATCH_QUEUE_MAX:
            self.reset()
        elif not self.wants_snapshot:
            self.changes.append(step)
        self.news.set()

    def reset(self) -> None:
        self.changes.clear()
        self.wants_snapshot = True
        self.news.set()


class Membership:
    """Nodes by id, as this replica knows them."""

    def __init__(self, store: MembershipStore, refill_seconds: float) -> None:
        self._store = store
        self._refill_seconds = refill_seconds
        self._members: dict[str, Member] = {}
        self._generation = ""
        self._revision = 0
        self._reload_at: float | None = 0.0
        self._watchers: set[_Watcher] = set()
        self.loaded = asyncio.Event()
        self.stale = True
        """Whether Redis is away from this replica, so that it hears of no changes."""

    @property
    def members(self) -> Mapping[str, Member]:
        """All known nodes by id."""
        return self._members

    @property
    def watchers(self) -> int:
        """Number of those who watch."""
        return len(self._watchers)

    def ordered_to_drain(self, node_id: str, incarnation: int) -> bool:
        """Tell whether an operator wants this process of the node out of service."""
        member = self._members.get(node_id)
        return member is not None and member.incarnation == incarnation and member.drain_ordered

    @property
    def refilling(self) -> bool:
        """Whether Redis has lost its data and the nodes are announcing themselves again."""
        return self._reload_at is not None and self.loaded.is_set()

    def require_loaded(self) -> None:
        """Raises Unavailable: if this replica has never seen Redis and so knows nothing."""
        if not self.loaded.is_set():
            raise Unavailable("Redis", "this tracker has not reached it yet")

    async def run(self) -> None:
        """Follow the event stream until cancelled."""
        while True:
            try:
                await self._load_if_due()
                changes = await self._store.events_after(self._revision)
                self._set_stale(False)
                for change in changes:
                    self._apply(change)
            except Unavailable:
                self._set_stale(True)
                await asyncio.sleep(_RETRY_SECONDS)

    def observe(self, scan: Scan) -> None:
        """Compare a scan with the view: another data set or a smaller revision calls for a new snapshot."""
        if not self.loaded.is_set():
            return
        if scan.generation != self._generation:
            log.warning("redis_lost_its_data", remedy="nothing to do, the nodes announce themselves again")
            self._generation, self._revision = scan.generation, 0
            self._reload_at = time.monotonic() + self._refill_seconds
            self._reset_watchers()
        elif scan.revision < self._revision:
            self._reload_at = 0.0

    async def look_now(self) -> None:
        """Compare with Redis at once, not at the next scan. Raises Unavailable."""
        self.observe(await self._store.scan())

    async def watch(self) -> AsyncGenerator[WatchStep, None]:
        """Yield a snapshot, then changes; a new snapshot when the caller falls behind or the view was reloaded."""
        watcher = _Watcher()
        self._watchers.add(watcher)
        try:
            while True:
                try:
                    async with asyncio.timeout(WATCH_SIGN_SECONDS):
                        await watcher.news.wait()
                except TimeoutError:
                    yield WatchStep(self._revision, (), False)
                    continue
                watcher.news.clear()
                if watcher.wants_snapshot:
                    watcher.wants_snapshot = False
                    yield WatchStep(self._revision, tuple(member.node for member in self._members.values()), True)
                while watcher.changes and not watcher.wants_snapshot:
                    yield watcher.changes.popleft()
        finally:
            self._watchers.discard(watcher)

    def _set_stale(self, stale: bool) -> None:
        """Tell watchers at once when that changes, by a sign of life."""
        if stale is not self.stale:
            self.stale = stale
            for watcher in self._watchers:
                watcher.put(WatchStep(self._revision, (), False))

    async def _load_if_due(self) -> None:
        if self._reload_at is None or time.monotonic() < self._reload_at:
            return
        self._reload_at = None
        try:
            self._adopt(await self._store.snapshot())
        except Unavailable:
            self._reload_at = 0.0
            raise

    def _adopt(self, snapshot: Snapshot) -> None:
        self._members = dict(snapshot.members)
        self._generation, self._revision = snapshot.generation, snapshot.revision
        self.loaded.set()
        self._set_stale(False)
        self._reset_watchers()

    def _reset_watchers(self) -> None:
        for watcher in self._watchers:
            watcher.reset()

    def _apply(self, change: Change) -> None:
        if change.revision != self._revision + 1 and self._reload_at is None:
            self._reload_at = 0.0
        self._revision = change.revision
        node = change.member.node
        known = self._members.get(node.id)
        if known and known.node.rank > node.rank:
            return
        if change.forgotten:
            self._members.pop(node.id, None)
        else:
            self._members[node.id] = change.member
        step = WatchStep(change.revision, (node,), False)
        for watcher in self._watchers:
            watcher.put(step)
