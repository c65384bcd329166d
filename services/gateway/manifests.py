"""Manifests and indexes: always whole and verified before the first byte is sent, the last ones kept in memory."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass

import structlog

from stafett.common.digest import Digest
from stafett.common.errors import (
    BlobUnknown,
    CorruptContent,
    ManifestInvalid,
    ManifestUnknown,
    Overloaded,
    Unavailable,
)
from stafett.common.oci import MANIFEST_MAX_BYTES, Index, Manifest, parse_manifest
from stafett.gateway.byte_range import Span
from stafett.gateway.metrics import LOCAL, SOURCE_OF_TIER
from stafett.gateway.own_content import OwnContent
from stafett.gateway.relay import Relay
from stafett.gateway.sourcing import Sourcing
from stafett.gateway.transfer import Transfer

log = structlog.get_logger()

MEMORY_BYTES = 16 * 1024 * 1024
FETCH_SECONDS = 2.0
OWN_SECONDS = 0.5
"""A host that does not give its own manifest in so long does not keep a peer from giving it."""
CORRUPT_TRIES = 3


@dataclass(frozen=True, slots=True)
class Document:
    """A verified manifest or index, and where it came from."""

    digest: Digest
    content: bytes
    parsed: Manifest | Index
    source: str
    node_id: str


class Manifests:
    """Fetches manifests by digest: from memory, the own store, or a holder."""

    def __init__(self, own: OwnContent, relay: Relay, sourcing: Sourcing) -> None:
        self._own = own
        self._relay = relay
        self._sourcing = sourcing
        self._memory: OrderedDict[Digest, Document] = OrderedDict()
        self._memory_bytes = 0

    async def get(self, digest: Digest, *, receiving: bool = False, image: str = "") -> Document:
        """Fetch and verify a manifest; `receiving` and `image` as in `Sourcing.find`.

        Raises:
            ManifestUnknown: if nobody delivers it in time. ManifestInvalid: if the content is no manifest.
        """
        if digest in self._memory:
            self._memory.move_to_end(digest)
            return self._memory[digest]
        try:
            async with asyncio.timeout(FETCH_SECONDS) as limit:
                document = await self._from_own(digest) or await self._from_peers(digest, receiving, image, limit)
        except (TimeoutError, BlobUnknown) as error:
            raise ManifestUnknown(digest) from error
        self._remember(document)
        return document

    async def _from_own(self, digest: Digest) -> Document | None:
        blob = await self._own.open(digest)
        if blob is None:
            return None
        try:
            async with asyncio.timeout(OWN_SECONDS):
                content = await _whole(blob.pieces(Span(0, _acceptable(blob.size_bytes), False)))
        except (OSError, Unavailable, Overloaded, BlobUnknown) as error:
            log.warning("own_manifest_unreadable", digest=str(digest), reason=str(error), remedy="peers serve it")
            return None
        finally:
            blob.close()
        if Digest.of(content) != digest:
            return None
        return Document(digest, content, parse_manifest(content), LOCAL, "")

    async def _from_peers(self, digest: Digest, receiving: bool, image: str, limit: asyncio.Timeout) -> Document:
        for _ in range(CORRUPT_TRIES):
            found = await self._sourcing.find(digest, receiving=receiving, ranged=False, image=image)
            if found is None:
                break
            sources, size = found
            limit.reschedule(asyncio.get_running_loop().time() + max(FETCH_SECONDS, sources.first_piece_seconds))
            span = Span(0, _acceptable(size), False)
            transfer = Transfer(self._relay, digest, size, span, sources)
            try:
                content = await _whole(transfer.pieces())
            except CorruptContent:
                continue
            served_by = transfer.served_by
            if served_by is None:
                break
            source = SOURCE_OF_TIER[served_by.tier]
            return Document(digest, content, parse_manifest(content), source, served_by.node.id)
        raise BlobUnknown(digest)

    def _remember(self, document: Document) -> None:
        if document.digest in self._memory:
            return
        self._memory[document.digest] = document
        self._memory_bytes += len(document.content)
        while self._memory_bytes > MEMORY_BYTES:
            _, dropped = self._memory.popitem(last=False)
            self._memory_bytes -= len(dropped.content)


def _acceptable(size_bytes: int) -> int:
    if size_bytes > MANIFEST_MAX_BYTES:
        raise ManifestInvalid(f"it has {size_bytes} bytes, more than {MANIFEST_MAX_BYTES}")
    return size_bytes


async def _whole(pieces: AsyncGenerator[memoryview, None]) -> bytes:
    async with aclosing(pieces) as stream:
        return b"".join([piece async for piece in stream])
