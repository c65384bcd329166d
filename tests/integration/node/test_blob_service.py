"""BlobService over real gRPC, out of a real layout."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest

from stafett.api.v1 import node_pb2, node_pb2_grpc
from stafett.cli.local_cluster.images import MadeImage
from stafett.common.blob_codec import BlobInfo, Frame, Waiting
from stafett.common.blob_files import blob_path
from stafett.common.blob_rpc import add_blob_service, read_frames
from stafett.common.cluster import Address
from stafett.common.digest import Digest
from stafett.common.grpc_transport import bind, new_server, peer_channel
from stafett.common.oci_layout import BlobWriter
from stafett.node.admission import StreamSlots, Throttle
from stafett.node.health import Tally
from stafett.node.indexer import Indexer
from stafett.node.ports import BlobReader
from stafett.node.servicer import BlobServicer
from stafett.node.spoilt import IDLE_LOOKS, LOOK_SECONDS, SpoiltIngests
from stafett.node.unfinished import Unfinished
from tests.integration.node.hosts import PLATFORM, LayoutHost, becomes, eventually

LAYER_BYTES = 12 * 1024 * 1024
"""More than the windows on the way hold, so that a reader that pauses holds the sender up."""
SLOTS = 2
NODE_ID = "n1"


class Held:
    """The blobs that the indexer has published last."""

    def __init__(self) -> None:
        self.digests: frozenset[Digest] = frozenset()


@dataclass
class Peer:
    """A serving node, and a channel to it."""

    host: LayoutHost
    image: MadeImage
    content: bytes
    slots: StreamSlots
    tally: Tally
    channel: grpc.aio.Channel
    held: Held
    unfinished: Unfinished

    @property
    def digest(self) -> Digest:
        return Digest.of(self.content)

    def read(
        self, digest: object, offset: int = 0, length: int = 0, *, follower: str = ""
    ) -> grpc.aio.UnaryStreamCall[node_pb2.ReadRequest, Frame]:
        request = node_pb2.ReadRequest(
            digest=str(digest), offset=offset, length=length, follow=bool(follower), reader=follower
        )
        return read_frames(self.channel)(request, timeout=30)

    async def frames(self, digest: object, offset: int = 0, length: int = 0, *, follower: str = "") -> list[Frame]:
        return [frame async for frame in self.read(digest, offset, length, follower=follower)]

    async def refusal(self, digest: object, offset: int = 0, *, follower: str = "") -> tuple[grpc.StatusCode, str]:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await self.frames(digest, offset, 0, follower=follower)
        return refused.value.code(), refused.value.details() or ""


@pytest.fixture
async def peer(tmp_path: Path, disk: ThreadPoolExecutor) -> AsyncIterator[Peer]:
    host = LayoutHost(tmp_path / "layout", disk)
    image = await host.receive("registry.test/lib/app:1", LAYER_BYTES)
    content = blob_path(host.root, image.blobs[PLATFORM][1].digest).read_bytes()
    held = Held()

    def publish(blobs: object, _: object) -> None:
        assert isinstance(blobs, dict)
        held.digests = frozenset(blobs)

    indexer = Indexer(host.store, publish, 3600)
    spoilt, unfinished = SpoiltIngests(host.store), Unfinished(host.store, disk)
    slots, tally = StreamSlots(SLOTS), Tally()
    server, _ = new_server()
    add_blob_service(server, BlobServicer(host.store, indexer, spoilt, unfinished, slots, Throttle(0), tally))
    port = bind(server, Address("127.0.0.1", 0), None)
    await server.start()
    channel = peer_channel(Address("127.0.0.1", port), None)
    running = [asyncio.create_task(work) for work in (indexer.run(), spoilt.run(), unfinished.run())]
    try:
        await becomes(lambda: len(held.digests) == 4)
        yield Peer(host, image, content, slots, tally, channel, held, unfinished)
    finally:
        for task in running:
            task.cancel()
        await asyncio.wait(running)
        await channel.close()
        await server.stop(grace=0)
        unfinished.close()


def joined(frames: list[Frame]) -> bytes:
    return b"".join(bytes(frame) for frame in frames if isinstance(frame, (bytes, memoryview)))


async def test_a_stream_starts_with_the_description_and_is_the_blob(peer: Peer) -> None:
    frames = await peer.frames(peer.digest)
    size = len(peer.content)
    assert frames[0] == BlobInfo(size, complete=True, available_bytes=size)
    assert all(isinstance(frame, (bytes, memoryview)) for frame in frames[1:])
    assert Digest.of(joined(frames)) == peer.digest
    assert (peer.tally.sent_bytes, peer.tally.sent_unfinished_bytes) == (size, 0)


@pytest.mark.parametrize(
    ("offset", "length"),
    [(0, 1), (1, 0), (1_048_575, 2_097_155), (LAYER_BYTES, 0), (5, 1 << 62)],
)
async def test_any_range_is_served(peer: Peer, offset: int, length: int) -> None:
    frames = await peer.frames(peer.digest, offset, length)
    assert isinstance(frames[0], BlobInfo)
    assert joined(frames) == peer.content[offset : offset + length if length else None]


async def test_at_its_end_a_blob_has_no_bytes_and_beyond_it_no_range(peer: Peer) -> None:
    size = len(peer.content)
    assert await peer.frames(peer.digest, size) == [BlobInfo(size, complete=True, available_bytes=size)]
    code, _ = await peer.refusal(peer.digest, size + 1)
    assert code is grpc.StatusCode.OUT_OF_RANGE
    assert peer.slots.taken == 0


async def test_an_absent_blob_is_not_found(peer: Peer) -> None:
    code, _ = await peer.refusal(Digest.of(b"absent"))
    assert code is grpc.StatusCode.NOT_FOUND


async def test_a_blob_that_vanished_is_not_found_and_withdrawn(peer: Peer) -> None:
    assert peer.digest in peer.held.digests
    await peer.host.lose(peer.digest)
    code, _ = await peer.refusal(peer.digest)
    assert code is grpc.StatusCode.NOT_FOUND
    await becomes(lambda: peer.digest not in peer.held.digests)


async def test_a_blob_that_arrived_since_the_last_listing_is_served(peer: Peer) -> None:
    image = await peer.host.receive("registry.test/lib/app:2", 10, seed=2)
    layer = image.blobs[PLATFORM][1]
    assert len(joined(await peer.frames(layer.digest))) == layer.size_bytes
    assert layer.digest in peer.held.digests


async def test_a_file_shorter_than_listed_is_a_failure_and_counted(peer: Peer) -> None:
    path = blob_path(peer.host.root, peer.digest)
    path.chmod(0o644)
    path.write_bytes(peer.content[:1000])
    code, details = await peer.refusal(peer.digest)
    assert code is grpc.StatusCode.UNAVAILABLE
    assert str(peer.host.root) not in details
    assert peer.tally.disk_errors == 1


@pytest.mark.parametrize(
    "digest", ["", "sha256:ab", "sha256:../../etc/passwd", "md5:" + "0" * 32, "sha256:" + "A" * 64]
)
async def test_a_malformed_digest_is_refused_without_internals(peer: Peer, digest: str) -> None:
    code, details = await peer.refusal(digest)
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    for internal in ("Traceback", "Error", str(peer.host.root), ".py"):
        assert internal not in details


async def test_beyond_the_limit_streams_are_refused_until_a_client_goes_away(peer: Peer) -> None:
    calls = [peer.read(peer.digest) for _ in range(SLOTS)]
    for call in calls:
        assert isinstance(await call.read(), BlobInfo)
    code, _ = await peer.refusal(peer.digest)
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    calls[0].cancel()
    await becomes(lambda: peer.slots.taken < SLOTS)
    assert Digest.of(joined(await peer.frames(peer.digest))) == peer.digest
    calls[1].cancel()
    await becomes(lambda: peer.slots.taken == 0)


async def test_a_draining_node_finishes_what_it_serves_and_takes_nothing_new(peer: Peer) -> None:
    frames = aiter(peer.read(peer.digest))
    assert isinstance(await anext(frames), BlobInfo)
    peer.slots.draining = True
    code, _ = await peer.refusal(peer.digest)
    assert code is grpc.StatusCode.FAILED_PRECONDITION
    assert Digest.of(joined([frame async for frame in frames])) == peer.digest
    await asyncio.wait_for(peer.slots.idle.wait(), 30)


async def test_stat_tells_the_size_or_that_there_is_nothing(peer: Peer) -> None:
    stub = node_pb2_grpc.BlobServiceStub(peer.channel)
    answer = await stub.Stat(node_pb2.StatRequest(digest=str(peer.digest)), timeout=10)
    assert (answer.info.size_bytes, answer.info.complete) == (len(peer.content), True)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await stub.Stat(node_pb2.StatRequest(digest=str(Digest.of(b"absent"))), timeout=10)
    assert refused.value.code() is grpc.StatusCode.NOT_FOUND


async def test_a_blob_is_read_again_once_for_all_who_ask_and_a_wrong_one_is_withdrawn(
    peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[Digest] = []
    open_blob = peer.host.store.open

    async def counting(digest: Digest) -> BlobReader:
        opened.append(digest)
        return await open_blob(digest)

    monkeypatch.setattr(peer.host.store, "open", counting)
    stub = node_pb2_grpc.BlobServiceStub(peer.channel)
    request = node_pb2.VerifyBlobRequest(digest=str(peer.digest))

    async def verdicts() -> set[bool]:
        return {answer.intact for answer in await asyncio.gather(*(stub.VerifyBlob(request) for _ in range(5)))}

    assert await verdicts() == {True}
    assert opened == [peer.digest]
    assert peer.digest in peer.held.digests
    path = blob_path(peer.host.root, peer.digest)
    path.chmod(0o644)
    path.write_bytes(bytes(len(peer.content)))
    assert await verdicts() == {False}
    assert opened == [peer.digest] * 2
    assert peer.digest not in peer.held.digests
    code, _ = await peer.refusal(peer.digest)
    assert code is grpc.StatusCode.NOT_FOUND


async def test_a_copy_that_cannot_be_read_again_has_no_verdict_and_is_a_disk_error(peer: Peer) -> None:
    path = blob_path(peer.host.root, peer.digest)
    path.unlink()
    path.mkdir()
    stub = node_pb2_grpc.BlobServiceStub(peer.channel)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await stub.VerifyBlob(node_pb2.VerifyBlobRequest(digest=str(peer.digest)))
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
    assert peer.tally.disk_errors == 1


async def test_a_disk_that_gives_input_output_errors_is_a_failure_and_counted(peer: Peer) -> None:
    path = blob_path(peer.host.root, peer.digest)
    path.unlink()
    path.symlink_to(f"/proc/{os.getpid()}/mem")  # what is at address 0 cannot be read: EIO, from the kernel
    code, _ = await peer.refusal(peer.digest)
    assert code is grpc.StatusCode.UNAVAILABLE
    assert peer.tally.disk_errors == 1


async def test_too_many_or_malformed_expectations_are_refused(peer: Peer) -> None:
    stub = node_pb2_grpc.BlobServiceStub(peer.channel)
    for digests in ([str(peer.digest)] * 1001, ["sha256:x"]):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stub.ExpectBlobs(node_pb2.ExpectBlobsRequest(digests=digests), timeout=10)
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_spoilt_download_is_dropped_once_nobody_writes_it_and_no_other(peer: Peer) -> None:
    spoilt, other = Digest.of(b"spoilt"), Digest.of(b"other")
    stub = node_pb2_grpc.BlobServiceStub(peer.channel)
    with peer.host.receiving(spoilt) as write, peer.host.receiving(other) as write_other:
        write_other(b"x")
        await stub.DiscardIngest(node_pb2.DiscardIngestRequest(digest=str(spoilt)), timeout=5)
        for _ in range(IDLE_LOOKS * 2):
            write(b"x")
            await asyncio.sleep(LOOK_SECONDS * 0.8)
        assert {ingest.digest for ingest in await peer.host.store.ingests()} == {spoilt, other}

    async def dropped() -> bool:
        return [ingest.digest for ingest in await peer.host.store.ingests()] == [other]

    await eventually(dropped)
    with peer.host.receiving(spoilt) as write_afresh:
        write_afresh(b"x")
        await asyncio.sleep(LOOK_SECONDS * (IDLE_LOOKS + 3))
        assert {ingest.digest for ingest in await peer.host.store.ingests()} == {spoilt, other}


FOLLOWED = bytes(range(256)) * 12_000


async def next_bytes(call: AsyncIterator[Frame], count: int) -> bytes:
    """Read data frames until so many bytes have come."""
    got = b""
    while len(got) < count:
        frame = await anext(call)
        if isinstance(frame, (bytes, memoryview)):
            got += bytes(frame)
    return got


async def test_a_blob_is_passed_on_while_it_is_received_and_across_its_commit(peer: Peer) -> None:
    digest = Digest.of(FOLLOWED)
    writer = BlobWriter(peer.host.root, digest, len(FOLLOWED))
    writer.write(FOLLOWED[:1_000_000])
    frames = aiter(peer.read(digest, 10, follower="n2"))
    assert await anext(frames) == BlobInfo(len(FOLLOWED), complete=False, available_bytes=1_000_000)
    got = await next_bytes(frames, 1_000_000 - 10)
    assert isinstance(await anext(frames), Waiting)
    writer.write(FOLLOWED[1_000_000:2_000_000])
    got += await next_bytes(frames, 1_000_000)
    writer.write(FOLLOWED[2_000_000:])
    writer.commit()
    got += await next_bytes(frames, len(FOLLOWED) - 2_000_000)
    assert got == FOLLOWED[10:]
    with pytest.raises(StopAsyncIteration):
        await anext(frames)
    assert peer.tally.sent_bytes == peer.tally.sent_unfinished_bytes == len(got)


async def test_without_following_an_unfinished_blob_is_not_there(peer: Peer) -> None:
    digest = Digest.of(FOLLOWED)
    writer = BlobWriter(peer.host.root, digest, len(FOLLOWED))
    writer.write(FOLLOWED[:100])
    code, _ = await peer.refusal(digest)
    assert code is grpc.StatusCode.NOT_FOUND
    writer.close()


@pytest.mark.parametrize("end", ["given up", "begun again"])
async def test_the_follower_of_a_download_that_ends_badly_is_told(peer: Peer, end: str) -> None:
    digest = Digest.of(FOLLOWED)
    writer = BlobWriter(peer.host.root, digest, len(FOLLOWED))
    writer.write(FOLLOWED[:100_000])
    frames = aiter(peer.read(digest, follower="n2"))
    await next_bytes(frames, 100_000)
    assert isinstance(await anext(frames), Waiting)
    if end == "given up":
        writer.path.unlink()
    else:
        os.truncate(writer.path, 0)
    with pytest.raises(grpc.aio.AioRpcError) as ended:
        await next_bytes(frames, 1)
    assert ended.value.code() is grpc.StatusCode.UNAVAILABLE
    assert end in (ended.value.details() or "")
    writer.close()


async def test_nobody_follows_a_host_that_follows_him(peer: Peer) -> None:
    digest = Digest.of(FOLLOWED)
    writer = BlobWriter(peer.host.root, digest, len(FOLLOWED))
    writer.write(FOLLOWED[:100])
    stub = node_pb2_grpc.BlobServiceStub(peer.channel)
    await stub.NoteAncestors(node_pb2.NoteAncestorsRequest(digest=str(digest), ancestors=["n3", "n2"]), timeout=5)
    code, _ = await peer.refusal(digest, follower="n2")
    assert code is grpc.StatusCode.FAILED_PRECONDITION
    call = peer.read(digest, follower="n4")
    assert isinstance(await anext(aiter(call)), BlobInfo)
    call.cancel()
    writer.close()


async def test_a_gateway_can_wait_for_a_download_to_grow(peer: Peer) -> None:
    digest = Digest.of(FOLLOWED)
    stub = node_pb2_grpc.BlobServiceStub(peer.channel)

    async def stat(beyond: int, wait_ms: int) -> node_pb2.StatResponse:
        request = node_pb2.StatRequest(digest=str(digest), unfinished=True, beyond_bytes=beyond, wait_ms=wait_ms)
        return await stub.Stat(request, timeout=10)

    writer = BlobWriter(peer.host.root, digest, len(FOLLOWED))
    answer = await stat(0, 1)
    assert (answer.info.size_bytes, answer.info.available_bytes, answer.open_ingests) == (len(FOLLOWED), 0, 1)
    growing = asyncio.create_task(stat(0, 2000))
    await asyncio.sleep(0.1)
    assert not growing.done()
    writer.write(FOLLOWED)
    assert (await growing).info.available_bytes == len(FOLLOWED)
    ending = asyncio.create_task(stat(len(FOLLOWED), 2000))
    await asyncio.sleep(0.1)
    writer.commit()
    assert (await ending).info.complete


async def test_what_was_removed_and_is_received_again_is_not_taken_for_complete(peer: Peer) -> None:
    """A gateway that believed it would wait for bytes that are only to come through itself."""
    await peer.host.lose(peer.digest)
    writer = BlobWriter(peer.host.root, peer.digest, len(peer.content))
    stub = node_pb2_grpc.BlobServiceStub(peer.channel)
    answer = await stub.Stat(node_pb2.StatRequest(digest=str(peer.digest), unfinished=True), timeout=10)
    assert not answer.info.complete
    assert (answer.info.size_bytes, answer.info.available_bytes, answer.open_ingests) == (len(peer.content), 0, 1)
    await becomes(lambda: peer.digest not in peer.held.digests)
    writer.close()
