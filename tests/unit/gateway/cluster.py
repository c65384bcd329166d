"""Holders and peers for tests: peers follow a script instead of a network."""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from stafett.common.blob_codec import BlobInfo, Frame, Waiting
from stafett.common.cluster import Address, Holder, Node, NodeState
from stafett.common.digest import Digest
from stafett.common.errors import ManifestUnknown, Unavailable
from stafett.common.topology import Topology
from stafett.gateway.ports import PeerTally, RelayAnswer, RelayAsk, TagTarget

CHUNK = 1000


def node(name: str, *, zone: str = "a", epoch: int = 1, state: NodeState = NodeState.READY, sequence: int = 0) -> Node:
    return Node(name, epoch, Address(name, 7461), Topology("eu", zone), state, sequence=sequence)


def holder(name: str, size_bytes: int, *, zone: str = "a") -> Holder:
    return Holder(node(name, zone=zone), size_bytes)


@dataclass
class Script:
    """How a peer behaves: its content, and what happens at which absolute position."""

    content: bytes
    breaks_at: int | None = None
    error: Callable[[str], Exception] = lambda name: Unavailable(name, "connection reset")
    stalls_at: int | None = None
    ends_at: int | None = None
    extra: bytes = b""
    states_bytes: int | None = None
    waits: int = 0
    pause_seconds: float = 0.0
    fails_times: int = 1_000
    """How often `breaks_at` happens."""
    first_byte_seconds: float = 0.0
    verifies: Callable[[], bool] | None = None
    """What the node says of its copy; by default the truth."""


@dataclass
class FakePeers:
    """Peers by name; remembers who was asked, and who is being read now."""

    scripts: dict[str, Script]
    asked: list[tuple[str, int]] = field(default_factory=list)
    verified: list[str] = field(default_factory=list)
    open_now: int = 0

    async def read(
        self, node: Node, digest: Digest, offset: int, length: int, *, follow: bool = False
    ) -> AsyncGenerator[Frame, None]:
        script = self.scripts[node.id]
        self.asked.append((node.id, offset))
        self.open_now += 1
        try:
            size = len(script.content) if script.states_bytes is None else script.states_bytes
            yield BlobInfo(size, complete=True, available_bytes=size)
            await asyncio.sleep(script.first_byte_seconds)
            for _ in range(script.waits):
                await asyncio.sleep(0.02)
                yield Waiting(20, offset)
            position, end = offset, offset + length
            while position < end:
                stop = min(position + CHUNK, end)
                if script.fails_times and script.breaks_at is not None and position <= script.breaks_at < stop:
                    script.fails_times -= 1
                    if script.breaks_at > position:
                        yield script.content[position : script.breaks_at]
                    raise script.error(node.id)
                if script.stalls_at is not None and position <= script.stalls_at < stop:
                    await asyncio.sleep(3600)
                if script.ends_at is not None and position >= script.ends_at:
                    return
                await asyncio.sleep(script.pause_seconds)
                yield script.content[position:stop]
                position = stop
            if script.extra:
                yield script.extra
        finally:
            self.open_now -= 1

    async def verify(self, node: Node, digest: Digest) -> bool:
        script = self.scripts[node.id]
        self.verified.append(node.id)
        await asyncio.sleep(0)
        return script.verifies() if script.verifies else Digest.of(script.content) == digest


@dataclass
class FakeTracker:
    """A tracker that knows what it is told; `away` makes it unreachable."""

    holders: Mapping[Digest, tuple[Holder, ...]] = field(default_factory=lambda: defaultdict(tuple))
    tags: Mapping[str, TagTarget] = field(default_factory=dict)
    away: bool = False
    untold: frozenset[Digest] = frozenset()
    """Digests that it cannot tell anything of now."""
    calls: list[tuple[Digest, ...]] = field(default_factory=list)
    reports: list[Mapping[str, PeerTally]] = field(default_factory=list)
    answers: list[RelayAnswer] = field(default_factory=list)
    """What it says when asked where to get a blob, one after the other."""
    asked: list[RelayAsk] = field(default_factory=list)
    again_after_seconds: float = 60.0

    async def report(self, tallies: Mapping[str, PeerTally]) -> None:
        if self.away:
            raise Unavailable("tracker", "away")
        self.reports.append(tallies)

    async def locate(self, digests: Sequence[Digest]) -> Mapping[Digest, tuple[Holder, ...]]:
        self.calls.append(tuple(digests))
        await asyncio.sleep(0)
        if self.away:
            raise Unavailable("tracker", "away")
        return {digest: self.holders.get(digest, ()) for digest in digests if digest not in self.untold}

    async def relay(self, ask: RelayAsk) -> tuple[RelayAnswer, float]:
        self.asked.append(replace(ask, left=dict(ask.left)))
        await asyncio.sleep(0)
        if self.away or not self.answers:
            raise Unavailable("tracker", "away")
        return self.answers.pop(0), self.again_after_seconds

    async def resolve_tag(self, name: str) -> TagTarget:
        if self.away:
            raise Unavailable("tracker", "away")
        if name not in self.tags:
            raise ManifestUnknown(name)
        return self.tags[name]


def content_of(size: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size)
