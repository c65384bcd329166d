"""The relay trees that this replica decides about: gathers who asks at the same moment, decides, keeps the result.

Decisions are `relay_decision`'s. A tree is changed in memory and then saved by compare-and-set; if somebody else was
first, it is read again and the decision made anew. While Redis is away memory alone counts.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NoReturn

import structlog

from stafett.common.cluster import NodeState
from stafett.common.digest import Digest
from stafett.common.errors import Unavailable
from stafett.common.relaying import Phase, Refused, Wait
from stafett.common.topology import Topology
from stafett.tracker.lookup import Lookup, Question
from stafett.tracker.membership import Membership
from stafett.tracker.relay_decision import Answer, Ask, View, decide, stay_seconds
from stafett.tracker.relay_placement import LINK_BYTES_PER_SECOND, zone_of
from stafett.tracker.relay_tree import CLAIM, Tree
from stafett.tracker.tree_store import KEEP_SECONDS, TreeStore

log = structlog.get_logger()

WAIT_SECONDS = 1.0
"""So long a host that has to wait is kept before it is told to ask again."""
COMPLETE_FRESH_SECONDS = 0.3
HOLDERS = 32
SAVE_TRIES = 4
FORGET_SECONDS = 60.0
LINK_FADES = 0.999
"""Per word from a host."""
SLOW_KEPT_SECONDS = 600.0
"""So long a host that was slow in one tree is put last in others."""


@dataclass(frozen=True, slots=True, eq=False)
class _Asked:
    """A question, and where its answer goes. Lines of thousands are searched by identity."""

    ask: Ask
    answer: asyncio.Future[Answer]


_Line = dict[_Asked, None]
"""Questions in the order in which they came."""


@dataclass
class _Desk:
    """One digest: its tree, who waits for a decision, and who for the first bytes. `complete`: holders near a zone."""

    tree: Tree | None = None
    pending: _Line = field(default_factory=dict)
    waiting: _Line = field(default_factory=dict)
    work: asyncio.Task[None] | None = None
    complete: dict[Topology, tuple[float, Mapping[str, Topology]]] = field(default_factory=dict)
    saved_at: float = 0.0
    used_at: float = 0.0


class Relays:
    """Answers hosts. `run` must be running."""

    def __init__(self, store: TreeStore, lookup: Lookup, membership: Membership) -> None:
        self._store = store
        self._lookup = lookup
        self._membership = membership
        self._desks: dict[Digest, _Desk] = {}
        self._link_bytes_per_second = 0.0
        self._slow_until: dict[str, float] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> NoReturn:
        """Forget trees that nobody has asked about for a minute, for ever."""
        try:
            while True:
                await asyncio.sleep(FORGET_SECONDS / 4)
                old = time.time() - FORGET_SECONDS
                for digest, desk in list(self._desks.items()):
                    if desk.used_at < old and desk.work is None and not desk.waiting:
                        del self._desks[digest]
                self._slow_until = {node: until for node, until in self._slow_until.items() if until > time.time()}
        finally:
            for task in self._tasks:
                task.cancel()

    @property
    def trees(self) -> int:
        """Number of blobs that hosts asked about within the last minute."""
        return len(self._desks)

    async def answer(self, digest: Digest, ask: Ask) -> tuple[Answer, float]:
        """Tell a host where it gets a blob, and in how many seconds it should tell how far it is."""
        self._membership.require_loaded()
        desk = self._desks.setdefault(digest, _Desk())
        desk.used_at = time.time()
        asked = _Asked(ask, asyncio.get_running_loop().create_future())
        desk.pending[asked] = None
        self._get_to_work(digest, desk)
        try:
            async with asyncio.timeout(WAIT_SECONDS):
                answer = await asked.answer
        except TimeoutError:
            answer = Wait()
        finally:
            for line in (desk.waiting, desk.pending):
                line.pop(asked, None)
        return answer, stay_seconds(desk.tree or Tree())

    def _get_to_work(self, digest: Digest, desk: _Desk) -> None:
        if desk.work is None:
            desk.work = asyncio.create_task(self._work(digest, desk))
            self._tasks.add(desk.work)
            desk.work.add_done_callback(self._tasks.discard)

    async def _work(self, digest: Digest, desk: _Desk) -> None:
        try:
            while desk.pending:
                await self._serve(digest, desk)
        except Exception:
            log.exception("relay_decision_failed", digest=str(digest), remedy="please report this")
            _settle([*desk.pending, *desk.waiting], lambda _: Refused("internal error"))
            desk.pending, desk.waiting, desk.tree = {}, {}, None
        finally:
            desk.work = None

    async def _serve(self, digest: Digest, desk: _Desk) -> None:
        """Answer the next batch; news about the first bytes send those who wait for them back into the queue."""
        batch = _one_each(desk.pending)
        before = _news(desk.tree)
        try:
            answers = await self._decide(digest, desk, [asked.ask for asked in batch])
        except BaseException:
            _settle(batch, lambda _: Refused("internal error"))
            raise
        if _news(desk.tree) != before:
            desk.pending |= desk.waiting
            desk.waiting = {}
        waiting = {asked: None for asked in batch if isinstance(answers[asked.ask.node_id], Wait)}
        desk.waiting |= waiting
        _settle([asked for asked in batch if asked not in waiting], lambda ask: answers[ask.node_id])

    async def _decide(self, digest: Digest, desk: _Desk, asks: Sequence[Ask]) -> Mapping[str, Answer]:
        for _ in range(SAVE_TRIES):
            if desk.tree is None:
                desk.tree = await self._load(digest)
            answers = decide(desk.tree, asks, await self._view(digest, desk, asks))
            self._learn(desk.tree, asks)
            if time.time() - desk.saved_at > KEEP_SECONDS / 4:
                desk.tree.changed.add(CLAIM)  # a tree that does not change must not run out in Redis
            if not desk.tree.changed or (CLAIM not in desk.tree.changed and not _seek(asks)):
                return answers  # farewells are saved with the next change
            try:
                if await self._save(digest, desk.tree):
                    desk.saved_at = time.time()
                    return answers
            except Unavailable:
                return answers
            desk.tree = None
        return {ask.node_id: Wait() for ask in asks}

    async def _save(self, digest: Digest, tree: Tree) -> bool:
        """Save a tree; False if somebody else has changed it. One that Redis has lost is put back."""
        if await self._store.save(digest, tree):
            return True
        if (await self._store.load(digest)).version:
            return False
        tree.forget_saved()
        return await self._store.save(digest, tree)

    async def _load(self, digest: Digest) -> Tree:
        tree = Tree()
        if self._store.available:
            with contextlib.suppress(Unavailable):
                tree = await self._store.load(digest)
        tree.resume(time.time())
        return tree

    async def _view(self, digest: Digest, desk: _Desk, asks: Sequence[Ask]) -> View:
        now = time.time()
        desk.complete = {
            zone: found for zone, found in desk.complete.items() if now - found[0] <= COMPLETE_FRESH_SECONDS
        }
        for zone, place in {zone_of(ask.place): ask.place for ask in _seek(asks)}.items():
            all_known = any(len(near) < HOLDERS for _, near in desk.complete.values())
            if zone not in desk.complete and not all_known:
                [holders], _ = await self._lookup.locate([digest], Question("", place, HOLDERS))
                desk.complete[zone] = now, {holder.node.id: holder.node.topology for holder in holders}
        complete = {name: place for _, near in desk.complete.values() for name, place in near.items()}
        link = self._link_bytes_per_second or LINK_BYTES_PER_SECOND
        return View(now, self._in_service, complete, self._unsteady(asks, now), link)

    def _learn(self, tree: Tree, asks: Sequence[Ask]) -> None:
        """Learn how fast links are from what hosts get, and who is slow; old news fade away."""
        for ask in asks:
            seat = tree.seats.get(ask.node_id)
            if seat is not None and seat.bytes_per_second:
                self._link_bytes_per_second = max(self._link_bytes_per_second * LINK_FADES, seat.bytes_per_second)
            if seat is not None and seat.slow and not seat.done:
                if ask.node_id not in self._slow_until:
                    log.info("host_is_slow", node=ask.node_id, bytes_per_second=round(seat.bytes_per_second))
                self._slow_until[ask.node_id] = time.time() + SLOW_KEPT_SECONDS

    def _in_service(self, node_id: str) -> bool:
        member = self._membership.members.get(node_id)
        return member is not None and member.node.state is NodeState.READY

    def _unsteady(self, asks: Sequence[Ask], now: float) -> set[str]:
        members = self._membership.members
        flapping = {ask.node_id for ask in asks if ask.node_id in members and members[ask.node_id].node.flaps}
        return flapping | {node_id for node_id, until in self._slow_until.items() if until > now}


def _seek(asks: Sequence[Ask]) -> Sequence[Ask]:
    """Choose those who get the blob from somebody, or want to."""
    return [ask for ask in asks if ask.phase in (Phase.ENTER, Phase.STAY)]


def _settle(line: Iterable[_Asked], answer: Callable[[Ask], Answer]) -> None:
    for asked in line:
        if not asked.answer.done():
            asked.answer.set_result(answer(asked.ask))


def _one_each(pending: _Line) -> list[_Asked]:
    """Take the first question of each host; a second one is for the next round."""
    batch: dict[str, _Asked] = {}
    for asked in pending:
        batch.setdefault(asked.ask.node_id, asked)
    for asked in batch.values():
        del pending[asked]
    return list(batch.values())


def _news(tree: Tree | None) -> tuple[object, ...]:
    """What those who wait are waiting for."""
    if tree is None:
        return ()
    claimant = tree.seats.get(tree.claim.node_id) if tree.claim else None
    done = sum(1 for seat in tree.seats.values() if seat.done)
    return tree.claim is None, claimant is not None and claimant.received_bytes > 0, done, tree.refused_until
