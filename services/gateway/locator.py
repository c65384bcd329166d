"""Holders of digests: a cache before the tracker that makes one call of many, and an answer even without trackers.

Decides when a remembered answer is good enough; never which holder is taken.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import structlog

from stafett.common.cluster import Holder
from stafett.common.digest import Digest
from stafett.common.errors import StafettError
from stafett.gateway.ports import Tracker

log = structlog.get_logger()

FRESH_SECONDS = 2.0
NEGATIVE_FRESH_SECONDS = 0.5
TRACKER_REST_SECONDS = 1.0
"""After a failed call the tracker is left alone this long: requests answer from memory at once."""
REMEMBERED_DIGESTS = 20_000


@dataclass(frozen=True, slots=True)
class _Answer:
    holders: tuple[Holder, ...]
    at: float


class Locator:
    """Finds holders. `group` owns the shared calls, which outlive the request that happened to start them."""

    def __init__(
        self,
        tracker: Tracker,
        group: asyncio.TaskGroup,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._tracker = tracker
        self._group = group
        self._clock = clock
        self._answers: OrderedDict[Digest, _Answer] = OrderedDict()
        self._in_flight: dict[Digest, asyncio.Task[None]] = {}
        self._rest_until = 0.0
        self.stale_lookups = 0
        """Lookups answered from memory, however old, as no tracker answered."""

    @property
    def tracker_reachable(self) -> bool:
        """Whether the last call was answered."""
        return self._clock() >= self._rest_until

    def rest(self) -> None:
        """Leave the trackers alone for a moment: they have just not answered."""
        self._rest_until = self._clock() + TRACKER_REST_SECONDS

    async def locate(self, digests: Sequence[Digest], *, fresh: bool = False) -> Mapping[Digest, tuple[Holder, ...]]:
        """Find holders of each digest, from memory where that is recent (`fresh` forbids that) or all there is."""
        wanted = [digest for digest in digests if fresh or not self._is_fresh(digest)]
        missing = [digest for digest in wanted if digest not in self._in_flight]
        if missing and self.tracker_reachable:
            task = self._group.create_task(self._ask(missing))
            self._in_flight.update(dict.fromkeys(missing, task))
        calls = {self._in_flight[digest] for digest in wanted if digest in self._in_flight}
        if calls:
            await asyncio.wait(calls)
        if wanted and not self.tracker_reachable:
            self.stale_lookups += 1
        return {digest: self.remembered(digest) for digest in digests}

    def forget(self, digest: Digest, node_id: str) -> None:
        """Drop one holder from the remembered answer: it said that it has not got the blob."""
        if answer := self._answers.get(digest):
            kept = tuple(holder for holder in answer.holders if holder.node.id != node_id)
            self._answers[digest] = _Answer(kept, answer.at)

    def _is_fresh(self, digest: Digest) -> bool:
        answer = self._answers.get(digest)
        if answer is None:
            return False
        limit = FRESH_SECONDS if answer.holders else NEGATIVE_FRESH_SECONDS
        return self._clock() - answer.at < limit

    def remembered(self, digest: Digest) -> tuple[Holder, ...]:
        """Return the last answer, however old."""
        answer = self._answers.get(digest)
        return answer.holders if answer else ()

    async def _ask(self, digests: list[Digest]) -> None:
        try:
            located = await self._tracker.locate(digests)
        except StafettError as error:
            self.rest()
            log.warning("locate_failed", reason=str(error))
            return
        finally:
            for digest in digests:
                self._in_flight.pop(digest, None)
        now = self._clock()
        for digest in digests:
            holders = located[digest] if digest in located else self.remembered(digest)
            self._answers[digest] = _Answer(holders, now)
            self._answers.move_to_end(digest)
        while len(self._answers) > REMEMBERED_DIGESTS:
            self._answers.popitem(last=False)
