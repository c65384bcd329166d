"""What the node needs from a content store."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from stafett.common.digest import Digest
from stafett.common.oci import StoredImage


@dataclass(frozen=True, slots=True)
class Ingest:
    """A download under way: `data` grows in order from byte 0, and becomes `blob`. `owner` is the store's name for it.

    `size_bytes` is what it will have in the end, 0 where the store does not know.
    """

    digest: Digest
    data: Path
    blob: Path
    owner: str
    size_bytes: int = 0


class BlobReader(Protocol):
    """An open blob; stays readable when the store drops it."""

    @property
    def size_bytes(self) -> int:
        """Full size of the blob."""
        ...

    def chunks(self, offset: int, length: int) -> AsyncIterator[bytes]:
        """Yield `length` bytes from `offset` in pieces of at most 1 MiB."""
        ...

    def close(self) -> None:
        """Free what is open; harmless when done twice."""
        ...


class ContentStore(Protocol):
    """Where a host keeps its content. All methods raise Unavailable while the store does not answer."""

    async def list_blobs(self) -> Mapping[Digest, int]:
        """List all complete blobs that may be served, with their sizes in bytes."""
        ...

    async def list_images(self) -> Sequence[StoredImage]:
        """List image records."""
        ...

    def changes(self) -> AsyncGenerator[None, None]:
        """Yield whenever something may have changed, and once at each (re)connection; ends when the store goes away."""
        ...

    async def size_of(self, digest: Digest) -> int | None:
        """Tell the size of a complete blob that may be served, None if there is none, or its file cannot be reached."""
        ...

    async def open(self, digest: Digest) -> BlobReader:
        """Open a blob. Raises BlobUnknown: if it is not there; OSError: if it cannot be read."""
        ...

    async def ingests(self, digest: Digest | None = None) -> Sequence[Ingest]:
        """List the downloads under way, of one digest or all, abandoned ones too."""
        ...

    async def abort(self, ingest: Ingest) -> None:
        """Drop an ingest; harmless if it is gone."""
        ...

    async def condemn(self, digest: Digest) -> None:
        """Note that the bytes of a blob are wrong, for as long as it stays, where the store has a place for that."""
        ...

    async def condemned(self) -> Collection[Digest]:
        """List the blobs that such a note is on."""
        ...

    async def close(self) -> None:
        """Free connections."""
        ...
