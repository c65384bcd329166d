"""BlobService: wire to store, nothing else."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncGenerator, Iterator

import grpc
import structlog

from stafett.api.v1 import node_pb2
from stafett.common.blob_codec import BlobInfo, Frame
from stafett.common.digest import Digest
from stafett.common.errors import BlobUnknown, RangeUnsatisfiable, RequestInvalid, Unavailable
from stafett.node.admission import FrameSize, StreamSlots, Throttle
from stafett.node.health import Tally
from stafett.node.indexer import Indexer
from stafett.node.ports import BlobReader, ContentStore
from stafett.node.spoilt import SpoiltIngests

log = structlog.get_logger()

EXPECT_MAX = 1000
Context = grpc.aio.ServicerContext[object, object]


class BlobServicer:
    """Serves what the indexer lists, out of the store."""

    def __init__(
        self,
        node_id: str,
        store: ContentStore,
        indexer: Indexer,
        spoilt: SpoiltIngests,
        slots: StreamSlots,
        throttle: Throttle,
        tally: Tally,
    ) -> None:
        self._node_id = node_id
        self._store = store
        self._indexer = indexer
        self._spoilt = spoilt
        self._slots = slots
        self._throttle = throttle
        self._tally = tally

    async def Stat(self, request: node_pb2.StatRequest, context: Context) -> node_pb2.StatResponse:  # noqa: N802
        """Tell what is here of a blob."""
        size = await self._size_of(Digest.parse(request.digest))
        info = node_pb2.BlobInfo(size_bytes=size, complete=True, available_bytes=size)
        return node_pb2.StatResponse(info=info)

    async def ExpectBlobs(  # noqa: N802
        self, request: node_pb2.ExpectBlobsRequest, context: Context
    ) -> node_pb2.ExpectBlobsResponse:
        """Hear what the host is pulling."""
        if len(request.digests) > EXPECT_MAX:
            raise RequestInvalid("digests", f"at most {EXPECT_MAX}")
        self._indexer.expect([Digest.parse(digest) for digest in request.digests])
        return node_pb2.ExpectBlobsResponse()

    async def DiscardIngest(  # noqa: N802
        self, request: node_pb2.DiscardIngestRequest, context: Context
    ) -> node_pb2.DiscardIngestResponse:
        """Hear that what the host has received of a blob is wrong."""
        self._spoilt.discard(Digest.parse(request.digest))
        return node_pb2.DiscardIngestResponse()

    async def VerifyBlob(  # noqa: N802
        self, request: node_pb2.VerifyBlobRequest, context: Context
    ) -> node_pb2.VerifyBlobResponse:
        """Read a blob again; a wrong one is withdrawn."""
        digest = Digest.parse(request.digest)
        size = await self._size_of(digest)
        reader = await self._open(digest)
        running = hashlib.sha256()
        try:
            async for chunk in reader.chunks(0, size):
                await asyncio.to_thread(running.update, chunk)
        except OSError as error:
            raise self._unreadable(error) from error
        finally:
            reader.close()
        intact = running.hexdigest() == digest.hex
        if not intact:
            log.error("blob_corrupt", digest=str(digest), remedy="remove the image that has it and pull it again")
            self._indexer.condemn(digest)
        return node_pb2.VerifyBlobResponse(intact=intact)

    async def Read(self, request: node_pb2.ReadRequest, context: Context) -> AsyncGenerator[Frame, None]:  # noqa: N802
        """Stream a blob: its description, then its bytes."""
        digest = Digest.parse(request.digest)
        if self._node_id in request.ancestors:
            raise RequestInvalid("ancestors", "this node is its own ancestor")
        with self._slots.take():
            size = await self._size_of(digest)
            if request.offset > size:
                raise RangeUnsatisfiable(size)
            length = min(request.length or size, size - request.offset)
            reader = await self._open(digest)
            try:
                yield BlobInfo(size, complete=True, available_bytes=size)
                async for chunk in self._chunks(reader, request.offset, length):
                    yield chunk
            finally:
                reader.close()

    async def _size_of(self, digest: Digest) -> int:
        size = self._indexer.size_of(digest)
        if size is None:
            size = await self._indexer.look_up(digest)
        if size is None:
            raise BlobUnknown(digest)
        return size

    async def _open(self, digest: Digest) -> BlobReader:
        try:
            return await self._store.open(digest)
        except BlobUnknown:
            self._indexer.evict(digest)
            raise
        except OSError as error:
            raise self._unreadable(error) from error

    async def _chunks(self, reader: BlobReader, offset: int, length: int) -> AsyncGenerator[bytes, None]:
        sent = 0
        frame = FrameSize()
        try:
            async for chunk in reader.chunks(offset, length):
                for piece in _cut(chunk, frame):
                    started_at = time.monotonic()
                    await self._throttle.pass_(len(piece))
                    sent += len(piece)
                    self._tally.sent_bytes += len(piece)
                    yield piece
                    frame.sent(len(piece), time.monotonic() - started_at)
        except OSError as error:
            raise self._unreadable(error) from error
        if sent < length:
            raise self._unreadable(OSError(0, "the file ends early"))

    def _unreadable(self, error: OSError) -> Unavailable:
        self._tally.disk_errors += 1
        log.error("blob_unreadable", reason=error.strerror)
        return Unavailable("blob file", error.strerror or "unreadable")


def _cut(chunk: bytes, frame: FrameSize) -> Iterator[bytes]:
    """Cut a chunk into frames, each of the size that is right when its turn comes."""
    position = 0
    while position < len(chunk):
        end = position + frame.size_bytes
        yield chunk if position == 0 and end >= len(chunk) else chunk[position:end]
        position = end
