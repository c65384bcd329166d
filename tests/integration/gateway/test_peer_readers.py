"""One conformance suite for `ports.PeerReader`: the scripted peers of the unit tests, and real nodes over gRPC."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from dataclasses import dataclass

import pytest

from stafett.common.blob_codec import BlobInfo, Frame
from stafett.common.blob_rpc import add_blob_service
from stafett.common.cluster import Address, Node
from stafett.common.digest import Digest
from stafett.common.errors import BlobUnknown, Unavailable
from stafett.common.grpc_transport import bind, new_server
from stafett.gateway.grpc_peer import GrpcPeers
from stafett.gateway.ports import PeerReader
from tests.integration.gateway.bed import Peer, broken_after
from tests.unit.gateway.cluster import CHUNK, FakePeers, Script, content_of

CONTENT = content_of(5 * CHUNK + 1)
D = Digest.of(CONTENT)
ABSENT = Digest.of(b"absent")


@dataclass
class Subject:
    """A reader with two nodes: one that has the blob, one that breaks after a chunk."""

    reader: PeerReader
    good: Node
    broken: Node
    absent: Node
    open_reads: Callable[[], int]


@asynccontextmanager
async def scripted() -> AsyncIterator[Subject]:
    peers = FakePeers(
        {
            "good": Script(CONTENT),
            "broken": Script(CONTENT, breaks_at=CHUNK),
            "absent": Script(CONTENT, breaks_at=0, error=lambda name: BlobUnknown(D)),
        }
    )
    good, broken, absent = (Node(name, 1, Address(name, 1)) for name in ("good", "broken", "absent"))
    yield Subject(peers, good, broken, absent, lambda: peers.open_now)


@asynccontextmanager
async def over_grpc() -> AsyncIterator[Subject]:
    good, broken, absent = Peer("good", {D: CONTENT}), Peer("broken", {D: CONTENT}, broken_after(CHUNK)), Peer("absent")
    servers, nodes = [], []
    for peer in (good, broken, absent):
        server, _ = new_server()
        add_blob_service(server, peer)
        nodes.append(Node(peer.name, 1, Address("127.0.0.1", bind(server, Address("127.0.0.1", 0), None))))
        await server.start()
        servers.append(server)
    reader = GrpcPeers(None)
    try:
        yield Subject(reader, nodes[0], nodes[1], nodes[2], lambda: good.open_reads + broken.open_reads)
    finally:
        await reader.close()
        for server in servers:
            await server.stop(None)


Made = Callable[[], AbstractAsyncContextManager[Subject]]
both = pytest.mark.parametrize("made", [scripted, over_grpc])


async def data_of(frames: AsyncGenerator[Frame, None]) -> tuple[list[BlobInfo], bytes]:
    infos, data = [], bytearray()
    async with aclosing(frames) as stream:
        async for frame in stream:
            if isinstance(frame, BlobInfo):
                infos.append(frame)
            elif isinstance(frame, bytes | memoryview):
                data += frame
    return infos, bytes(data)


@both
@pytest.mark.parametrize(("offset", "length"), [(0, len(CONTENT)), (1, 5), (CHUNK, CHUNK), (len(CONTENT) - 1, 1)])
async def test_a_read_describes_the_blob_and_gives_just_what_was_asked_for(
    made: Made, offset: int, length: int
) -> None:
    async with made() as subject:
        infos, data = await data_of(subject.reader.read(subject.good, D, offset, length))
        assert [(info.size_bytes, info.complete) for info in infos] == [(len(CONTENT), True)]
        assert data == CONTENT[offset : offset + length]
        assert subject.open_reads() == 0


@both
async def test_a_stream_that_breaks_raises_unavailable_after_the_bytes_it_had(made: Made) -> None:
    async with made() as subject:
        received = bytearray()

        async def read() -> None:
            async with aclosing(subject.reader.read(subject.broken, D, 0, len(CONTENT))) as frames:
                async for frame in frames:
                    if isinstance(frame, bytes | memoryview):
                        received.extend(frame)

        with pytest.raises(Unavailable):
            await read()
        assert bytes(received) == CONTENT[:CHUNK]


@both
async def test_a_node_without_the_blob_says_so(made: Made) -> None:
    async with made() as subject:
        with pytest.raises(BlobUnknown):
            await data_of(subject.reader.read(subject.absent, D, 0, len(CONTENT)))


async def test_a_node_that_refuses_connections_is_unavailable() -> None:
    reader = GrpcPeers(None)
    with pytest.raises(Unavailable):
        await data_of(reader.read(Node("n", 1, Address("127.0.0.1", 1)), D, 0, 1))
    await reader.close()
