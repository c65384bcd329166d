"""How peers behaved towards this gateway, gathered and told to the trackers in batches: a failure is learnt once."""

from __future__ import annotations

import asyncio
from typing import NoReturn

import structlog

from stafett.common.cluster import Node
from stafett.common.digest import Digest
from stafett.common.errors import Unavailable
from stafett.gateway.ports import PeerTally, Tracker

log = structlog.get_logger()

BATCH_SECONDS = 0.25
"""Failures are told this soon; what comes in between goes along."""


class Outcomes:
    """Tallies by node id. Successes wait for the next failure: only failures are news."""

    def __init__(self, tracker: Tracker) -> None:
        self._tracker = tracker
        self._tallies: dict[str, PeerTally] = {}
        self._failures = asyncio.Event()

    def succeeded(self, node: Node) -> None:
        """A stream gave all that it was asked for."""
        self._of(node).succeeded += 1

    def overloaded(self, node: Node) -> None:
        """A stream was refused for lack of a slot, which is nobody's fault."""
        self._of(node).overloaded += 1

    def failed(self, node: Node) -> None:
        """A stream was refused, broke, or fell silent."""
        self._of(node).stalled += 1
        self._failures.set()

    def corrupt(self, node: Node, digest: Digest) -> None:
        """A node may have sent wrong bytes of a blob."""
        self._of(node).corrupt.add(digest)
        self._failures.set()

    async def run(self) -> NoReturn:
        """Report, for ever. What no tracker hears is dropped: it would be old news."""
        while True:
            await self._failures.wait()
            await asyncio.sleep(BATCH_SECONDS)
            self._failures.clear()
            tallies, self._tallies = self._tallies, {}
            try:
                await self._tracker.report(tallies)
            except Unavailable as error:
                log.info("outcomes_not_reported", reason=error.reason)

    def _of(self, node: Node) -> PeerTally:
        tally = self._tallies.get(node.id)
        if tally is None or tally.epoch != node.epoch:
            tally = self._tallies[node.id] = PeerTally(node.epoch)
        return tally
