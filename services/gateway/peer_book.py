"""What this gateway has seen of its peers: streams open to them, how fast they are, whether they fail.

Remembers; who is chosen is `selection`'s. A node's new session starts a new page: what the old one did is forgotten.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from stafett.common.cluster import Node
from stafett.gateway.breaker import Breaker
from stafett.gateway.selection import UNKNOWN_FIRST_BYTE_SECONDS, PeerView

DECAY_SECONDS = 10.0
FORGET_SECONDS = 60.0
"""An observation this old says nothing: the peer is as good as unknown, so it gets another chance."""

PAGES_MAX = 10_000
"""Beyond so many, the pages of nodes that the trackers have forgotten are dropped."""


@dataclass(frozen=True, slots=True)
class PeakEwma:
    """A moving average that believes bad news at once and good news slowly (Finagle's PeakEwma), in seconds."""

    average: float = 0.0
    at: float = -math.inf

    def observe(self, sample: float, now: float) -> PeakEwma:
        """Take a sample."""
        known = self.value(now)
        if known is None or sample >= known:
            return PeakEwma(sample, now)
        weight = math.exp(-(now - self.at) / DECAY_SECONDS)
        return PeakEwma(known * weight + sample * (1 - weight), now)

    def value(self, now: float) -> float | None:
        """Tell the average; None when nothing is known, or nothing recent."""
        return self.average if now - self.at < FORGET_SECONDS else None


@dataclass
class Peer:
    """One node's page, under one epoch."""

    epoch: int
    pending: int = 0
    breaker: Breaker = field(default_factory=Breaker)
    first_byte: PeakEwma = field(default_factory=PeakEwma)
    seconds_per_mib: PeakEwma = field(default_factory=PeakEwma)

    def open_stream(self) -> None:
        """A stream was opened."""
        self.pending += 1
        self.breaker = self.breaker.opened()

    def close_stream(self, seconds_per_mib: float | None, now: float) -> None:
        """A stream has ended, for whatever reason; its pace, if it lasted long enough to tell one."""
        self.pending -= 1
        self.breaker = self.breaker.abandoned()
        if seconds_per_mib is not None:
            self.seconds_per_mib = self.seconds_per_mib.observe(seconds_per_mib, now)

    def stream_succeeded(self) -> None:
        """It gave all that it was asked for."""
        self.breaker = self.breaker.succeeded()

    def stream_failed(self, now: float) -> None:
        """It was refused, broke or fell silent."""
        self.breaker = self.breaker.failed(now)

    def first_byte_came(self, seconds: float, now: float) -> None:
        """A stream's first byte took so long; a stream that tried the peer out has shown that it answers."""
        self.first_byte = self.first_byte.observe(seconds, now)
        self.breaker = self.breaker.abandoned()

    def first_byte_missing(self, seconds: float, now: float) -> None:
        """A stream's first byte takes longer than this: news only if that is longer than usual."""
        if seconds > (self.first_byte.value(now) or UNKNOWN_FIRST_BYTE_SECONDS):
            self.first_byte = self.first_byte.observe(seconds, now)


@dataclass
class PeerBook:
    """All pages. `nodes` is what Watch says of each node."""

    clock: Callable[[], float] = time.monotonic
    nodes: dict[str, Node] = field(default_factory=dict)
    _pages: dict[str, Peer] = field(default_factory=dict)

    def of(self, node: Node) -> Peer:
        """Find a node's page; a new one for a new epoch."""
        page = self._pages.get(node.id)
        if page is None or page.epoch < node.epoch:
            page = self._pages[node.id] = Peer(node.epoch)
            if len(self._pages) > PAGES_MAX:
                self._pages = {
                    known: page for known, page in self._pages.items() if page.pending or known in self.nodes
                }
        return page

    def view(self, node: Node) -> PeerView:
        """Sum up a node's page for selection."""
        page, now = self.of(node), self.clock()
        return PeerView(
            page.pending, page.first_byte.value(now), page.seconds_per_mib.value(now), page.breaker.blocks(now)
        )

    @property
    def streams_open(self) -> int:
        """Streams open to all peers together; may be read from any thread."""
        return sum(page.pending for page in list(self._pages.values()))
