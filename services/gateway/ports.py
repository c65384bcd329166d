"""What the gateway needs from the outside, so that decisions can be tested without it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from stafett.common.blob_codec import Frame
from stafett.common.cluster import Address, Holder, Node
from stafett.common.digest import Digest
from stafett.common.relaying import Fetch, Left, Phase, Received, Refused, Wait


@dataclass(frozen=True, slots=True)
class TagTarget:
    """What peers last knew a tag to mean; `updated_at_unix_ms` is when a node last pulled it."""

    digest: Digest
    updated_at_unix_ms: int


@dataclass
class PeerTally:
    """What one peer did since the last report, under the epoch that it was dialled with."""

    epoch: int
    succeeded: int = 0
    refused: int = 0
    stalled: int = 0
    overloaded: int = 0
    first_byte_seconds: list[float] = field(default_factory=list)
    seconds_per_mib: list[float] = field(default_factory=list)
    corrupt: set[Digest] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class RelayAsk:
    """What the host tells of a blob that it is receiving, see `RelayRequest` in tracker.proto."""

    digest: Digest
    phase: Phase
    size_bytes: int
    received_bytes: int
    ingest_open: bool = False
    parent: str = ""
    token: int = 0
    left: Mapping[str, Left] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RelayFollow:
    """Get the blob from this node, which has all of it or is receiving it from those ancestors."""

    node: Node
    complete: bool
    ancestors: tuple[str, ...]


RelayAnswer = RelayFollow | Fetch | Wait | Refused


class Tracker(Protocol):
    """Where holders are found."""

    async def locate(self, digests: Sequence[Digest]) -> Mapping[Digest, tuple[Holder, ...]]:
        """Find holders of each digest; one that the tracker cannot tell anything of now is left out.

        Raises:
            Unavailable: if no tracker answers in time.
        """
        ...

    async def relay(self, ask: RelayAsk) -> tuple[RelayAnswer, float]:
        """Tell where the host gets a blob, and in how many seconds to tell how far it is. Raises Unavailable."""
        ...

    async def resolve_tag(self, name: str) -> TagTarget:
        """Tell what "registry/repository:tag" means. Raises ManifestUnknown, Unavailable."""
        ...

    async def report(self, tallies: Mapping[str, PeerTally]) -> None:
        """Tell how peers, by node id, behaved. Raises Unavailable."""
        ...


class PeerReader(Protocol):
    """Where bytes come from."""

    def read(
        self, node: Node, digest: Digest, offset: int, length: int, *, follow: bool = False
    ) -> AsyncGenerator[Frame, None]:
        """Stream frames of a blob from a node: BlobInfo first, then data; ends after `length` bytes.

        With `follow` also of one that the node is still receiving, as it comes, with `Waiting` while nothing does.

        Closing the generator ends the stream at the node. Raises Unavailable, Overloaded, BlobUnknown, Draining,
        RangeUnsatisfiable.
        """
        ...

    async def verify(self, node: Node, digest: Digest) -> bool:
        """Have a node read its copy of a blob again; tell whether it is right. Raises as `read`."""
        ...


class OwnHost(Protocol):
    """The host that the gateway runs on, through its node."""

    address: Address

    async def receiving(self, digest: Digest, beyond_bytes: int = 0, wait_seconds: float = 0.0) -> Received | None:
        """Tell what the host has of a blob, after waiting for more than so many bytes; None if it has nothing.

        Raises:
            Unavailable: if its node is away.
        """
        ...

    async def note_ancestors(self, digest: Digest, ancestors: Sequence[str]) -> None:
        """Tell the node from whom its host gets a blob; empty: from no other host. Raises Unavailable."""
        ...
