"""One conformance suite for `ports.PeerReader`: the scripted peers of the unit tests, and real nodes over gRPC."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from dataclasses import dataclass
from functools import partial

import pytest

from stafett.common.blob_codec import BlobInfo, Frame
from stafett.common.blob_rpc import add_blob_service
from stafett.common.cluster import Address, Node
from stafett.common.digest import Digest
from stafett.common.errors import BlobUnknown, Draining, Overloaded, RangeUnsatisfiable, StafettError, Unavailable
from stafett.common.grpc_transport import bind, new_server
from stafett.gateway.grpc_peer import GrpcPeers
from stafett.gateway.ports import PeerReader
from tests.integration.gateway.bed import Peer, broken_after
from tests.unit.gateway.cluster import CHUNK, FakePeers, Script, content_of

CONTENT = content_of(5 * CHUNK + 1)
D = Digest.of(CONTENT)
LIE = CONTENT[:-1] + bytes([CONTENT[-1] ^ 1])
REFUSALS: tuple[StafettError, ...] = (
    BlobUnknown(D),
    Overloaded("streams", 1),
    Draining(),
    RangeUnsatisfiable(1),
    Unavailable("disk", "gone"),
)


@dataclass
class Subject:
    """A reader, and nodes: one has the blob, one breaks after a chunk, one has a wrong copy, and some refuse."""

    reader: PeerReader
    good: Node
    broken: Node
    lying: Node
    refusing: Mapping[type[StafettError], Node]
    open_reads: Callable[[], int]


def _given(error: StafettError, name: str) -> StafettError:
    return error


@asynccontextmanager
async def scripted() -> AsyncIterator[Subject]:
    peers = FakePeers(
        {
            "good": Script(CONTENT),
            "broken": Script(CONTENT, breaks_at=CHUNK),
            "lying": Script(LIE),
            **{type(error).__name__: Script(CONTENT, breaks_at=0, error=partial(_given, error)) for error in REFUSALS},
        }
    )
    good, broken, lying = (Node(name, 1, Address(name, 1)) for name in ("good", "broken", "lying"))
    refusing = {type(error): Node(type(error).__name__, 1, Address("refusing", 1)) for error in REFUSALS}
    yield Subject(peers, good, broken, lying, refusing, lambda: peers.open_now)


@asynccontextmanager
async def over_grpc() -> AsyncIterator[Subject]:
    good, broken = Peer("good", {D: CONTENT}), Peer("broken", {D: CONTENT}, broken_after(CHUNK))
    lying = Peer("lying", {D: LIE})
    refusing = [Peer(type(error).__name__, {D: CONTENT}, broken_after(0, error)) for error in REFUSALS]
    servers, nodes = [], []
    for peer in (good, broken, lying, *refusing):
        server, _ = new_server()
        add_blob_service(server, peer)
        nodes.append(Node(peer.name, 1, Address("127.0.0.1", bind(server, Address("127.0.0.1", 0), None))))
        await server.start()
        servers.append(server)
    reader = GrpcPeers(None, channels_max=1)
    refusers = {type(error): node for error, node in zip(REFUSALS, nodes[3:], strict=True)}
    try:
        yield Subject(reader, nodes[0], nodes[1], nodes[2], refusers, lambda: good.open_reads + broken.open_reads)
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
@pytest.mark.parametrize("error", [type(error) for error in REFUSALS])
async def test_a_node_tells_why_it_refuses(made: Made, error: type[StafettError]) -> None:
    async with made() as subject:
        with pytest.raises(error):
            await data_of(subject.reader.read(subject.refusing[error], D, 0, len(CONTENT)))


@both
async def test_a_stream_goes_on_while_others_come_and_go_beyond_the_number_of_connections_kept(made: Made) -> None:
    async with made() as subject, aclosing(subject.reader.read(subject.good, D, 0, len(CONTENT))) as frames:
        received = bytearray()
        async for frame in frames:
            if isinstance(frame, bytes | memoryview):
                received += frame
            for refusing in subject.refusing.values():
                with pytest.raises(StafettError):
                    await data_of(subject.reader.read(refusing, D, 0, 1))
        assert bytes(received) == CONTENT


@both
async def test_a_node_that_reads_its_copy_again_tells_whether_it_is_right(made: Made) -> None:
    async with made() as subject:
        assert await subject.reader.verify(subject.good, D)
        assert not await subject.reader.verify(subject.lying, D)


async def test_a_node_that_refuses_connections_is_unavailable() -> None:
    reader, away = GrpcPeers(None), Node("n", 1, Address("127.0.0.1", 1))
    with pytest.raises(Unavailable):
        await data_of(reader.read(away, D, 0, 1))
    with pytest.raises(Unavailable):
        await reader.verify(away, D)
    await reader.close()
