"""This host's part in relay trees: what it receives, what it fetches from upstream, how long clients waited.

Trackers decide; this module tells them how far the host is. A claim is watched through the own node, as the bytes from
upstream do not pass through the gateway.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import structlog

from stafett.common.digest import Digest
from stafett.common.errors import Unavailable
from stafett.common.relaying import Fetch, Phase, Received
from stafett.gateway.metrics import UPSTREAM_CLAIM, GatewayMetrics
from stafett.gateway.ports import OwnHost, RelayAsk, Tracker

log = structlog.get_logger()

GROWTH_WAIT_SECONDS = 1.0
LOOKS = 3
LOOK_PAUSE_SECONDS = 0.2
"""A claim is given up only if the own node has not answered so often: another host would fetch the blob once more."""
SILENCES_MAX = 3
TREES_REST_SECONDS = 4.0
"""After so many questions in a row without an answer nobody asks for a tree for so long: about what one costs."""
PATIENCE_SECONDS = 15.0
"""So long the clients of one image wait for first bytes in all; then they are sent elsewhere."""
PATIENCE_BACK_SECONDS = 60.0


@dataclass
class _Patience:
    """What the clients of one image have waited since a time; what they wait at the same time counts once."""

    since: float
    until: float = -math.inf
    seconds: float = 0.0

    def spend(self, now: float, seconds: float) -> None:
        if self.back(now):
            self.since, self.seconds = now - seconds, 0.0
        self.seconds += max(0.0, now - max(now - seconds, self.until))
        self.until = now

    def left(self, now: float) -> float:
        return PATIENCE_SECONDS if self.back(now) else max(0.0, PATIENCE_SECONDS - self.seconds)

    def back(self, now: float) -> bool:
        return now - self.since > PATIENCE_BACK_SECONDS


class Seats:
    """What a gateway is receiving for its host. `group` owns what goes on after a response has ended."""

    def __init__(
        self,
        tracker: Tracker,
        own_node: OwnHost,
        group: asyncio.TaskGroup,
        metrics: GatewayMetrics,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.tracker = tracker
        self.own_node = own_node
        self._group = group
        self._metrics = metrics
        self._clock = clock
        self._tokens: dict[Digest, int] = {}
        self._telling: dict[Digest, asyncio.Task[None]] = {}
        self._receiving: Counter[Digest] = Counter()
        self._patience: dict[str, _Patience] = {}
        self._silences = 0
        self._rest_until = -math.inf
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def trackers_rest(self) -> bool:
        """Whether the trackers have just not answered, so that asking them for a tree would only cost time."""
        return self._clock() < self._rest_until

    def note_answer(self, *, answered: bool) -> None:
        """Note whether the trackers have answered a question; one that is late is no reason to ask no more."""
        self._silences = 0 if answered else self._silences + 1
        if self._silences >= SILENCES_MAX:
            self._rest_until = self._clock() + TREES_REST_SECONDS

    def busy(self, digest: Digest) -> bool:
        """Tell whether another client of this host is already getting the blob."""
        return self.fetching(digest) or self._receiving[digest] > 0

    def fetching(self, digest: Digest) -> bool:
        """Tell whether this host fetches the blob from upstream, for all."""
        return digest in self._tokens

    @property
    def claims(self) -> int:
        """Number of blobs that this host fetches from upstream now."""
        return len(self._tokens)

    @contextmanager
    def receiving(self, digest: Digest) -> Iterator[None]:
        """Count a client while it gets the blob from other hosts."""
        self._receiving[digest] += 1
        try:
            yield
        finally:
            self._receiving[digest] -= 1
            if not self._receiving[digest]:
                del self._receiving[digest]

    def tell(self, ask: RelayAsk) -> None:
        """Tell the trackers something that needs no answer."""
        task = self._telling[ask.digest] = self._go_on(self._tell(ask))
        task.add_done_callback(lambda told: self._telling.get(ask.digest) is told and self._telling.pop(ask.digest))

    async def all_told(self, digest: Digest) -> None:
        """Wait until the trackers have heard of a blob what they were told: a farewell must not overtake a new seat."""
        if telling := self._telling.get(digest):
            await asyncio.wait([telling])

    def fetch(self, digest: Digest, size_bytes: int, received_bytes: int, token: int) -> None:
        """Watch what the host fetches from upstream under a claim, and tell the trackers how far it is."""
        watched = digest in self._tokens
        self._tokens[digest] = token
        if not watched:
            self._go_on(self._watch(digest, size_bytes, received_bytes))

    def patience_seconds(self, image: str) -> float:
        """Tell how long the clients of an image may still wait for first bytes."""
        return self._patience.get(image, _Patience(self._clock())).left(self._clock())

    def note_wait(self, image: str, seconds: float) -> None:
        """Count what a client of an image has just waited."""
        now = self._clock()
        if image not in self._patience:
            self._patience = {name: each for name, each in self._patience.items() if not each.back(now)}
            self._patience[image] = _Patience(now - seconds)
        self._patience[image].spend(now, seconds)

    def stop(self) -> None:
        """End what goes on."""
        for task in self._tasks:
            task.cancel()

    def _go_on(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = self._group.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _tell(self, ask: RelayAsk) -> None:
        try:
            await self.tracker.relay(ask)
        except Unavailable as error:
            log.info("relay_not_told", digest=str(ask.digest), phase=ask.phase.name, reason=error.reason)

    async def _watch(self, digest: Digest, size: int, received: int) -> None:
        log.info("fetching_from_upstream", digest=str(digest), offset=received)
        phase = Phase.LEAVE
        try:
            while True:
                state = await self._look(digest, received)
                if state is None:
                    break
                before, received = received, max(received, state.available_bytes)
                self._metrics.count_bytes(UPSTREAM_CLAIM, received - before)
                if state.open_ingests == 0:
                    phase = Phase.DONE
                    break
                token = self._tokens[digest]
                if not await self._keep(RelayAsk(digest, Phase.STAY, size, received, token=token)):
                    return
        except Unavailable as error:
            log.warning("claim_given_up", digest=str(digest), reason=error.reason, remedy="the own node must run")
        finally:
            token = self._tokens.pop(digest)
        await self._tell(RelayAsk(digest, phase, size, received, token=token))

    async def _look(self, digest: Digest, received: int) -> Received | None:
        """Ask the own node how far the fetch is; again if it is too busy. Raises Unavailable: if it does not answer."""
        for looks_left in reversed(range(LOOKS)):
            try:
                return await self.own_node.receiving(digest, received, GROWTH_WAIT_SECONDS)
            except Unavailable:
                if not looks_left:
                    raise
                await asyncio.sleep(LOOK_PAUSE_SECONDS)
        raise AssertionError("the last look returns or raises")

    async def _keep(self, ask: RelayAsk) -> bool:
        """Tell how far the fetch is, and rest; False if the claim is another's now."""
        try:
            answer, again_after_seconds = await self.tracker.relay(ask)
        except Unavailable:
            await asyncio.sleep(GROWTH_WAIT_SECONDS)
            return True
        if self._tokens[ask.digest] == ask.token and (not isinstance(answer, Fetch) or answer.token != ask.token):
            return False
        if ask.received_bytes:
            await asyncio.sleep(again_after_seconds)
        return True
