"""BlobService: wire to store, nothing else."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncGenerator, Iterator

import grpc
import structlog
from opentelemetry import trace

from stafett.api.v1 import node_pb2
from stafett.common.blob_codec import CHUNK_BYTES, BlobInfo, Frame, Waiting
from stafett.common.digest import Digest
from stafett.common.errors import BlobUnknown, RangeUnsatisfiable, RequestInvalid, Unavailable
from stafett.common.relaying import Received
from stafett.node.admission import FRAME_FOLLOWED_BYTES, FrameSize, StreamSlots, Throttle
from stafett.node.health import Tally
from stafett.node.indexer import Indexer
from stafett.node.ports import BlobReader, ContentStore
from stafett.node.spoilt import SpoiltIngests
from stafett.node.unfinished import Unfinished, UnfinishedBlob

log = structlog.get_logger()

EXPECT_MAX = 1000
WAIT_MAX_MS = 2000
COMMIT_LOOKS = 8
COMMIT_LOOK_SECONDS = 0.1
Context = grpc.aio.ServicerContext[object, object]


class BlobServicer:
    """Serves what the indexer lists, out of the store."""

    def __init__(
        self,
        store: ContentStore,
        indexer: Indexer,
        spoilt: SpoiltIngests,
        unfinished: Unfinished,
        slots: StreamSlots,
        throttle: Throttle,
        tally: Tally,
    ) -> None:
        self._store = store
        self._indexer = indexer
        self._spoilt = spoilt
        self._unfinished = unfinished
        self._slots = slots
        self._throttle = throttle
        self._tally = tally
        self._verifying: dict[Digest, asyncio.Task[bool]] = {}

    async def Stat(self, request: node_pb2.StatRequest, context: Context) -> node_pb2.StatResponse:  # noqa: N802
        """Tell what is here of a blob, and wait for more where that is asked for."""
        digest = Digest.parse(request.digest)
        try:
            size = await (self._stored_size(digest) if request.unfinished else self._size_of(digest))
        except BlobUnknown:
            if not request.unfinished:
                raise
            return await self._stat_unfinished(digest, request)
        info = node_pb2.BlobInfo(size_bytes=size, complete=True, available_bytes=size)
        return node_pb2.StatResponse(info=info)

    async def _stat_unfinished(self, digest: Digest, request: node_pb2.StatRequest) -> node_pb2.StatResponse:
        if request.wait_ms > WAIT_MAX_MS:
            raise RequestInvalid("wait_ms", f"at most {WAIT_MAX_MS}")
        received = await self._unfinished.grown(digest, request.beyond_bytes, request.wait_ms / 1000)
        if received is None:
            size = await self._committed_size(digest, COMMIT_LOOKS if request.wait_ms else 1)
            received = Received(size, size, 0)
        info = node_pb2.BlobInfo(
            size_bytes=received.size_bytes,
            complete=received.open_ingests == 0,
            available_bytes=received.available_bytes,
        )
        return node_pb2.StatResponse(info=info, open_ingests=received.open_ingests)

    async def _committed_size(self, digest: Digest, looks: int) -> int:
        """Look for a blob that was being received a moment ago: before its commit a store shows neither for a while."""
        for looks_left in reversed(range(looks)):
            try:
                return await self._size_of(digest)
            except BlobUnknown:
                if not looks_left:
                    raise
                await asyncio.sleep(COMMIT_LOOK_SECONDS)
        raise BlobUnknown(digest)

    async def NoteAncestors(  # noqa: N802
        self, request: node_pb2.NoteAncestorsRequest, context: Context
    ) -> node_pb2.NoteAncestorsResponse:
        """Hear from whom the host gets a blob."""
        self._unfinished.note_ancestors(Digest.parse(request.digest), request.ancestors)
        return node_pb2.NoteAncestorsResponse()

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
        """Read a blob again, once for all who ask meanwhile; a wrong one is withdrawn."""
        digest = Digest.parse(request.digest)
        if digest not in self._verifying:
            verifying = self._verifying[digest] = asyncio.create_task(self._is_intact(digest))
            verifying.add_done_callback(
                lambda done: (self._verifying.pop(digest), done.cancelled() or done.exception())
            )
        return node_pb2.VerifyBlobResponse(intact=await asyncio.shield(self._verifying[digest]))

    async def _is_intact(self, digest: Digest) -> bool:
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
            await self._indexer.condemn(digest)
        return intact

    async def Read(self, request: node_pb2.ReadRequest, context: Context) -> AsyncGenerator[Frame, None]:  # noqa: N802
        """Stream a blob: its description, then its bytes."""
        digest = Digest.parse(request.digest)
        trace.get_current_span().set_attributes({"stafett.digest": str(digest), "stafett.offset": request.offset})
        with self._slots.take():
            reader, size = await self._reader(digest, request)
            try:
                complete = not isinstance(reader, UnfinishedBlob)
                if request.offset > size and (size or complete):
                    raise RangeUnsatisfiable(size)
                length = min(request.length or size, size - request.offset) if size else request.length
                available = reader.available_bytes if isinstance(reader, UnfinishedBlob) else size
                yield BlobInfo(size, complete, available)
                async for frame in self._frames(reader, request.offset, length):
                    yield frame
            finally:
                reader.close()

    async def _reader(self, digest: Digest, request: node_pb2.ReadRequest) -> tuple[BlobReader | UnfinishedBlob, int]:
        """Open a blob, or the download of it; between its last byte and its commit a store shows neither."""
        for looks_left in reversed(range(COMMIT_LOOKS)):
            try:
                size = await self._size_of(digest)
                return await self._open(digest), size
            except BlobUnknown:
                if not request.follow:
                    raise
            try:
                unfinished = await self._unfinished.open(digest, request.reader)
                return unfinished, unfinished.size_bytes
            except BlobUnknown:
                if not looks_left:
                    raise
                await asyncio.sleep(COMMIT_LOOK_SECONDS)
        raise BlobUnknown(digest)

    async def _size_of(self, digest: Digest) -> int:
        size = self._indexer.size_of(digest)
        if size is None:
            size = await self._indexer.look_up(digest)
        if size is None:
            raise BlobUnknown(digest)
        return size

    async def _stored_size(self, digest: Digest) -> int:
        """Ask the store: the index lists for a while what has been removed, and is now received again."""
        size = await self._indexer.look_up(digest)
        if size is None:
            if self._indexer.size_of(digest) is not None:
                self._indexer.evict(digest)
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

    async def _frames(
        self, reader: BlobReader | UnfinishedBlob, offset: int, length: int
    ) -> AsyncGenerator[Frame, None]:
        sent = 0
        unfinished = isinstance(reader, UnfinishedBlob)
        frame = FrameSize(max_bytes=FRAME_FOLLOWED_BYTES if unfinished else CHUNK_BYTES)
        try:
            async for chunk in reader.chunks(offset, length):
                if isinstance(chunk, Waiting):
                    yield chunk
                    continue
                for piece in _cut(chunk, frame):
                    started_at = time.monotonic()
                    await self._throttle.pass_(len(piece))
                    sent += len(piece)
                    self._tally.sent_bytes += len(piece)
                    if unfinished:
                        self._tally.sent_unfinished_bytes += len(piece)
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
