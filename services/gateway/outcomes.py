"""How peers behaved towards this gateway, gathered and told to the trackers in batches: a failure is learnt once."""

from __future__ import annotations

import asyncio
from typing import NoReturn

import structlog

from stafett.common.cluster import Node
from stafett.common.digest import Digest
from stafett.common.errors import Unavailable
from stafett.gateway.ports import PeerTally, Tracker
from stafett.gateway.stream import Stream

log = structlog.get_logger()

FAILURE_BATCH_SECONDS = 0.25
"""Failures are told this soon; what comes in between goes along."""
BATCH_SECONDS = 5.0
"""Anything else is told this often."""


class Outcomes:
    """Tallies by node id. A client that hangs up is no outcome."""

    def __init__(self, tracker: Tracker) -> None:
        self._tracker = tracker
        self._tallies: dict[str, PeerTally] = {}
        self._failures = asyncio.Event()

    def ended(self, stream: Stream, *, slow: bool) -> None:
        """A stream gave all that was wanted of it, or was left as slow: then only its times count."""
        tally = self._of(stream.candidate.node)
        tally.succeeded += not slow
        if stream.first_byte_seconds is not None:
            tally.first_byte_seconds.append(stream.first_byte_seconds)
        if stream.pace.seconds_per_mib is not None:
            tally.seconds_per_mib.append(stream.pace.seconds_per_mib)

    def overloaded(self, node: Node) -> None:
        """A stream was refused for lack of a slot, which is nobody's fault."""
        self._of(node).overloaded += 1

    def failed(self, stream: Stream) -> None:
        """A stream was refused, broke, or fell silent."""
        tally = self._of(stream.candidate.node)
        if stream.first_byte_seconds is None:
            tally.refused += 1
        else:
            tally.stalled += 1
        self._failures.set()

    def corrupt(self, node: Node, digest: Digest) -> None:
        """A node may have sent wrong bytes of a blob."""
        self._of(node).corrupt.add(digest)
        self._failures.set()

    async def run(self) -> NoReturn:
        """Report, for ever. What no tracker hears is dropped: it would be old news."""
        while True:
            try:
                async with asyncio.timeout(BATCH_SECONDS):
                    await self._failures.wait()
                await asyncio.sleep(FAILURE_BATCH_SECONDS)
            except TimeoutError:
                if not self._tallies:
                    continue
            self._failures.clear()
            tallies, self._tallies = self._tallies, {}
            try:
                await self._tracker.report(tallies)
            except Unavailable as error:
                log.info("outcomes_not_reported", reason=error.reason)

    def _of(self, node: Node) -> PeerTally:
        tally = self._tallies.get(node.id)
        if tally is None or tally.epoch < node.epoch:
            tally = self._tallies[node.id] = PeerTally(node.epoch)
        return tally
