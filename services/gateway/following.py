"""A blob that is still spreading: the trackers say from whom this host gets it, and it tells them how far it is.

Chooses nothing itself. Where no tracker answers, the ranked holders are asked as for any other blob.
"""

from __future__ import annotations

import asyncio
import contextlib
import time

import structlog

from stafett.common.cluster import Holder, Node
from stafett.common.digest import Digest
from stafett.common.errors import BlobUnknown, Draining, Overloaded, StafettError, Unavailable
from stafett.common.relaying import Fetch, Left, Phase, Received, Refused, Wait
from stafett.common.topology import Tier, tier_between
from stafett.gateway import pull_trace
from stafett.gateway.ports import RelayAnswer, RelayAsk, RelayFollow
from stafett.gateway.relay import Relay
from stafett.gateway.seats import Seats
from stafett.gateway.selection import Candidate
from stafett.gateway.sources import FIRST_PIECE_SECONDS as RANKED_SECONDS
from stafett.gateway.sources import RankedSources, waited

log = structlog.get_logger()

FIRST_PIECE_SECONDS = 12.0
"""Bytes from upstream, through another host, may take ten seconds; the trackers watch over that."""
ASKS_MAX = 32


class TreeSources:
    """The parents that the trackers name, one after the other. See `sources.Sources`."""

    one_stream = True

    def __init__(self, relay: Relay, seats: Seats, digest: Digest, state: Received, image: str) -> None:
        self._relay = relay
        self._seats = seats
        self._digest = digest
        self._state = state
        self._image = image
        self._ranked = RankedSources(relay, digest)
        self._left = dict.fromkeys(relay.quarantine.nodes(digest), Left.FAILED)
        self._asks = 0
        # Another client of this host gets it, or has just got it.
        self._share = not state.open_ingests or (state.open_ingests > 1 and seats.busy(digest))
        self._parent: Candidate | None = None
        self._better: Candidate | None = None
        self._staying: asyncio.Task[None] | None = None
        self._counted = contextlib.ExitStack()
        self._begun_at: tuple[float, int] | None = None
        self._fetching = False
        self._ancestors: tuple[str, ...] = ()
        self.position = 0

    @property
    def first_piece_seconds(self) -> float:
        """See `Sources`."""
        return max(RANKED_SECONDS, min(FIRST_PIECE_SECONDS, self._seats.patience_seconds(self._image)))

    async def next(self) -> Candidate:
        """See `Sources`."""
        if self._begun_at is None:
            self._begun_at = time.monotonic(), self.position
            self._counted.enter_context(self._seats.receiving(self._digest))
        if self._share:
            self._share = False
            return self._own_host()
        better, self._better = self._better, None
        self._parent = better or await self._ask_until_told()
        if self._staying is None:
            self._staying = asyncio.create_task(self._stay())
        return self._parent

    def other_than(self, asked: Candidate) -> Candidate | None:
        """See `Sources`; only complete holders are compared with each other."""
        return self._ranked.other_than(asked) if not asked.growing else None

    def wants_to_leave(self, serving: Candidate) -> bool:
        """See `Sources`."""
        return self._better is not None and self._better.node.id != serving.node.id

    def left(self, candidate: Candidate, reason: StafettError | None) -> None:
        """See `Sources`."""
        self._ranked.left(candidate, reason)
        if candidate.tier is not Tier.HOST:
            self._left[candidate.node.id] = _why(reason)

    async def close(self, *, finished: bool) -> None:
        """See `Sources`."""
        if self._staying is not None:
            self._staying.cancel()
            await asyncio.wait([self._staying])
        self._counted.close()
        if self._begun_at is not None and self.position == self._begun_at[1]:
            self._seats.note_wait(self._image, time.monotonic() - self._begun_at[0])
        done = finished and self.position == self._state.size_bytes
        if self._asks and not self._fetching and (done or not self._seats.busy(self._digest)):
            self._seats.tell(self._told(Phase.DONE if done else Phase.LEAVE))
        if self._ancestors and not done and not self._seats.busy(self._digest):
            await self._note_ancestors(())

    async def _ask_until_told(self) -> Candidate:
        await self._seats.all_told(self._digest)
        while self._asks < ASKS_MAX:
            self._asks += 1
            asked_at = time.monotonic()
            try:
                answer, _ = await self._seats.tracker.relay(self._told(Phase.ENTER))
            except Unavailable as error:
                log.info("no_tree", digest=str(self._digest), reason=error.reason)
                self._seats.note_answer(answered=False)
                return await self._ranked.next()
            self._seats.note_answer(answered=True)
            if isinstance(answer, Wait) and self.position == 0:
                self._seats.note_wait(self._image, time.monotonic() - asked_at)
                if not self._seats.patience_seconds(self._image):
                    log.info("not_waited_longer", digest=str(self._digest), image=self._image)
                    break
            elif not isinstance(answer, Wait):
                return await self._accept(answer)
        raise BlobUnknown(self._digest)

    async def _accept(self, answer: RelayAnswer) -> Candidate:
        """Take the parent that a tracker names. Raises BlobUnknown: when it names none."""
        if isinstance(answer, RelayFollow):
            await self._note_ancestors((answer.node.id, *answer.ancestors))
            return self._candidate(answer)
        if isinstance(answer, Fetch):
            self._fetching = True
            await self._note_ancestors(())
            pull_trace.event("stafett.claim", offset=self.position)
            self._seats.fetch(self._digest, self._state.size_bytes, self.position, answer.token)
        elif isinstance(answer, Refused):
            log.info("not_relayed", digest=str(self._digest), reason=answer.reason)
            pull_trace.event("stafett.claim_refused", reason=answer.reason)
        raise BlobUnknown(self._digest)

    async def _note_ancestors(self, ancestors: tuple[str, ...]) -> None:
        """Tell the own node from whom the bytes come, also when only an ancestor has changed, or nobody is left."""
        if ancestors != self._ancestors:
            with contextlib.suppress(Unavailable):
                await self._seats.own_node.note_ancestors(self._digest, ancestors)
                self._ancestors = ancestors

    async def _stay(self) -> None:
        """Tell how far the host is, as often as the trackers want it; they may name a better parent."""
        again_after_seconds = 1.0
        while True:
            await asyncio.sleep(again_after_seconds)
            try:
                answer, again_after_seconds = await self._seats.tracker.relay(self._told(Phase.STAY))
            except Unavailable:
                continue
            serving = self._parent.node.id if self._parent else ""
            if isinstance(answer, RelayFollow):
                await self._note_ancestors((answer.node.id, *answer.ancestors))
                if answer.node.id != serving:
                    log.info("parent_changed", digest=str(self._digest), old=serving, new=answer.node.id)
                    pull_trace.event("stafett.parent_changed", holder=answer.node.id)
                    self._better = self._candidate(answer)

    def _told(self, phase: Phase) -> RelayAsk:
        parent = self._parent.node.id if self._parent else ""
        received = self._state.size_bytes if phase is Phase.DONE else self.position
        return RelayAsk(
            self._digest, phase, self._state.size_bytes, received, ingest_open=True, parent=parent, left=self._left
        )

    def _candidate(self, answer: RelayFollow) -> Candidate:
        holder = Holder(answer.node, self._state.size_bytes)
        known = [each for each in self._relay.ranked(self._digest, [holder]) if answer.complete]
        return known[0] if known else Candidate(holder, self._tier(answer.node), growing=not answer.complete)

    def _own_host(self) -> Candidate:
        """Follow the other client of this host that gets the same blob."""
        node = Node(self._relay.asking.node_id, 0, self._seats.own_node.address)
        return Candidate(Holder(node, self._state.size_bytes), Tier.HOST, growing=True)

    def _tier(self, node: Node) -> Tier:
        return tier_between(self._relay.asking.topology, node.topology)


def _why(reason: StafettError | None) -> Left:
    if reason is not None and waited(reason):
        return Left.IDLE
    return Left.DECLINED if reason is None or isinstance(reason, (Draining, Overloaded)) else Left.FAILED
