"""What the host's own store has, for clients other than its containerd (which never asks for what it has)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from concurrent.futures import Executor
from contextlib import aclosing
from pathlib import Path

import structlog

from stafett.common.blob_codec import Frame
from stafett.common.blob_files import BlobFile
from stafett.common.cluster import Node
from stafett.common.digest import Digest
from stafett.common.errors import BlobUnknown, Unavailable
from stafett.gateway.byte_range import Span
from stafett.gateway.grpc_peer import OwnNode
from stafett.gateway.ports import PeerReader

log = structlog.get_logger()

SILENCE_SECONDS = 5.0
"""After so long without a byte from the own node a response ends; OSError, as for a disk that fails."""


class OwnBlob:
    """A blob of this host, read from its file, or through the node where the store is not mounted."""

    def __init__(self, digest: Digest, size_bytes: int, file: BlobFile | None, node: Node, reader: PeerReader) -> None:
        self.size_bytes = size_bytes
        self._digest = digest
        self._file = file
        self._node = node
        self._reader = reader

    async def pieces(self, span: Span) -> AsyncGenerator[memoryview, None]:
        """Yield the bytes in pieces of at most 1 MiB."""
        if self._file is not None:
            async for chunk in self._file.chunks(span.offset, span.length):
                yield memoryview(chunk)
        elif span.length:
            reading = self._reader.read(self._node, self._digest, span.offset, span.length)
            async with aclosing(_pieces(reading)) as pieces:
                async for piece in pieces:
                    yield piece

    def close(self) -> None:
        """Close the file; must be called once."""
        if self._file is not None:
            self._file.close()


class OwnContent:
    """Finds blobs of this host. The node says what may be served: files alone know no namespaces."""

    def __init__(
        self,
        node: OwnNode,
        node_id: str,
        content_root: Path | None,
        reader: PeerReader,
        disk: Executor,
    ) -> None:
        self._own_node = node
        self._node = Node(node_id, 0, node.address)
        self._root = content_root
        self._reader = reader
        self._disk = disk

    async def discard_ingest(self, digest: Digest) -> None:
        """See that a download with wrong bytes in it is not continued, as far as the node is there to see to it."""
        try:
            await self._own_node.discard_ingest(digest)
        except Unavailable as error:
            log.warning("ingest_not_dropped", digest=str(digest), reason=error.reason)

    async def prefix(self, digest: Digest, length: int) -> AsyncGenerator[memoryview, None] | None:
        """Give the first bytes of a blob that the host is receiving; None if it has not so many."""
        try:
            state = await self._own_node.receiving(digest)
        except Unavailable:
            return None
        if state is None or state.available_bytes < length:
            return None
        return _pieces(self._reader.read(self._node, digest, 0, length, follow=True))

    async def open(self, digest: Digest) -> OwnBlob | None:
        """Open a blob, or None where this host has not got it, or cannot read it."""
        size = await self._own_node.size_of(digest)
        if size is None:
            return None
        if self._root is None:
            return OwnBlob(digest, size, None, self._node, self._reader)
        try:
            file = BlobFile.open(self._root, digest, self._disk)
        except (BlobUnknown, OSError):
            return None
        if file.size_bytes != size:
            file.close()
            return None
        return OwnBlob(digest, file.size_bytes, file, self._node, self._reader)


async def _pieces(reading: AsyncGenerator[Frame, None]) -> AsyncGenerator[memoryview, None]:
    """Yield the data of what is read from the own node. Raises TimeoutError: if it falls silent."""
    async with aclosing(reading) as frames:
        while True:
            async with asyncio.timeout(SILENCE_SECONDS):
                frame = await anext(frames, None)
            if frame is None:
                return
            if isinstance(frame, bytes | memoryview):
                yield memoryview(frame)
