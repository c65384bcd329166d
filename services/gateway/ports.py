"""What the gateway needs from the outside, so that decisions can be tested without it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from stafett.common.blob_codec import Frame
from stafett.common.cluster import Holder, Node
from stafett.common.digest import Digest


@dataclass(frozen=True, slots=True)
class TagTarget:
    """What peers last knew a tag to mean; `updated_at_unix_ms` is when a node last pulled it."""

    digest: Digest
    media_type: str
    size_bytes: int
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


class Tracker(Protocol):
    """Where holders are found."""

    async def locate(self, digests: Sequence[Digest]) -> Mapping[Digest, tuple[Holder, ...]]:
        """Find holders of each digest; one that the tracker cannot tell anything of now is left out.

        Raises:
            Unavailable: if no tracker answers in time.
        """
        ...

    async def resolve_tag(self, name: str) -> TagTarget:
        """Tell what "registry/repository:tag" means. Raises ManifestUnknown, Unavailable."""
        ...

    async def report(self, tallies: Mapping[str, PeerTally]) -> None:
        """Tell how peers, by node id, behaved. Raises Unavailable."""
        ...


class PeerReader(Protocol):
    """Where bytes come from."""

    def read(self, node: Node, digest: Digest, offset: int, length: int) -> AsyncGenerator[Frame, None]:
        """Stream frames of a blob from a node: BlobInfo first, then data; ends after `length` bytes.

        Closing the generator ends the stream at the node. Raises Unavailable, Overloaded, BlobUnknown, Draining,
        RangeUnsatisfiable.
        """
        ...
