"""A real gateway process between scripted peers and a scripted tracker, all over real gRPC and HTTP."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import grpc

from stafett.api.v1 import node_pb2, tracker_pb2, tracker_pb2_grpc
from stafett.cli.local_cluster.parts import start_service
from stafett.cli.local_cluster.processes import Process, Processes, free_port
from stafett.common import wire
from stafett.common.blob_codec import BlobInfo, Frame
from stafett.common.blob_rpc import add_blob_service
from stafett.common.cluster import Address, Holder, Node
from stafett.common.digest import Digest
from stafett.common.errors import BlobUnknown, ManifestUnknown, StafettError, Unavailable
from stafett.common.grpc_transport import bind, new_server
from stafett.common.topology import Topology

Serve = Callable[[bytes, int, int], AsyncGenerator[bytes, None]]
"""Gives the bytes of a content from an offset, for a length."""


async def whole(content: bytes, offset: int, length: int) -> AsyncGenerator[bytes, None]:
    """Serve as a healthy peer does."""
    for start in range(offset, offset + length, 65536):
        yield content[start : min(start + 65536, offset + length)]


def broken_after(size_bytes: int, error: StafettError | None = None) -> Serve:
    """Serve so many bytes, then break, for a reason."""

    async def serve(content: bytes, offset: int, length: int) -> AsyncGenerator[bytes, None]:
        if size_bytes:
            yield content[offset : offset + size_bytes]
        raise error or Unavailable("disk", "it is gone")

    return serve


@dataclass
class Peer:
    """A scripted BlobService."""

    name: str
    blobs: dict[Digest, bytes] = field(default_factory=dict)
    serve: Serve = whole
    port: int = 0
    reads: int = 0
    open_reads: int = 0
    expected: list[str] = field(default_factory=list)
    discarded: list[str] = field(default_factory=list)

    async def Stat(self, request: node_pb2.StatRequest, context: object) -> node_pb2.StatResponse:  # noqa: N802
        content = self.blobs.get(Digest.parse(request.digest))
        if content is None:
            raise BlobUnknown(request.digest)
        return node_pb2.StatResponse(info=node_pb2.BlobInfo(size_bytes=len(content), complete=True))

    async def ExpectBlobs(  # noqa: N802
        self, request: node_pb2.ExpectBlobsRequest, context: object
    ) -> node_pb2.ExpectBlobsResponse:
        self.expected += request.digests
        return node_pb2.ExpectBlobsResponse()

    async def DiscardIngest(  # noqa: N802
        self, request: node_pb2.DiscardIngestRequest, context: object
    ) -> node_pb2.DiscardIngestResponse:
        self.discarded.append(request.digest)
        return node_pb2.DiscardIngestResponse()

    async def VerifyBlob(  # noqa: N802
        self, request: node_pb2.VerifyBlobRequest, context: object
    ) -> node_pb2.VerifyBlobResponse:
        digest = Digest.parse(request.digest)
        if digest not in self.blobs:
            raise BlobUnknown(digest)
        return node_pb2.VerifyBlobResponse(intact=Digest.of(self.blobs[digest]) == digest)

    async def Read(self, request: node_pb2.ReadRequest, context: object) -> AsyncGenerator[Frame, None]:  # noqa: N802
        content = self.blobs.get(Digest.parse(request.digest))
        if content is None:
            raise BlobUnknown(request.digest)
        self.reads += 1
        self.open_reads += 1
        try:
            yield BlobInfo(len(content), complete=True, available_bytes=len(content))
            async for piece in self.serve(content, request.offset, request.length or len(content) - request.offset):
                yield piece
        finally:
            self.open_reads -= 1


class ScriptedTracker(tracker_pb2_grpc.TrackerServiceServicer):
    """Knows the peers, and the tags that it is told."""

    def __init__(self, peers: list[Peer]) -> None:
        self.peers = peers
        self.tags: dict[str, Digest] = {}
        self.located: list[tuple[str, ...]] = []
        self.watches = 0

    async def Locate(  # noqa: N802
        self, request: tracker_pb2.LocateRequest, context: object
    ) -> tracker_pb2.LocateResponse:
        self.located.append(tuple(request.digests))
        nodes = {
            peer.name: Node(peer.name, 1, Address("127.0.0.1", peer.port), Topology(zone=peer.name))
            for peer in self.peers
        }
        blobs = []
        for text in request.digests:
            digest = Digest.parse(text)
            holders = [Holder(nodes[peer.name], len(peer.blobs[digest])) for peer in self.peers if digest in peer.blobs]
            blobs.append(wire.located_to_wire(digest, holders))
        return tracker_pb2.LocateResponse(blobs=blobs, nodes=[wire.node_to_wire(node) for node in nodes.values()])

    async def ResolveTag(  # noqa: N802
        self, request: tracker_pb2.ResolveTagRequest, context: object
    ) -> tracker_pb2.ResolveTagResponse:
        if request.name not in self.tags:
            raise ManifestUnknown(request.name)
        return tracker_pb2.ResolveTagResponse(target_digest=str(self.tags[request.name]), updated_at_unix_ms=1)

    async def Watch(  # noqa: N802
        self, request: tracker_pb2.WatchRequest, context: object
    ) -> AsyncIterator[tracker_pb2.WatchResponse]:
        self.watches += 1
        yield tracker_pb2.WatchResponse(revision=1, snapshot=tracker_pb2.NodeSnapshot())
        await asyncio.sleep(3600)

    async def ReportOutcomes(  # noqa: N802
        self, request: tracker_pb2.ReportOutcomesRequest, context: object
    ) -> tracker_pb2.ReportOutcomesResponse:
        return tracker_pb2.ReportOutcomesResponse()


@dataclass
class GatewayBed:
    """The running gateway with its surroundings."""

    tracker: ScriptedTracker
    own: Peer
    upstream_port: int
    url: str
    tag_url: str
    process: Process


@asynccontextmanager
async def gateway_bed(
    directory: Path, peers: list[Peer], settings: Mapping[str, object] | None = None, *, with_tracker: bool = True
) -> AsyncIterator[GatewayBed]:
    """Start peers, tracker and a gateway; `reg.test` is the upstream registry, and nobody listens there."""
    own = Peer("me")
    tracker = ScriptedTracker(peers)  # type: ignore[abstract] # the other methods are not called
    async with AsyncExitStack() as stack:
        for peer in (own, *peers):
            peer.port = await start_server(stack, lambda server, peer=peer: add_blob_service(server, peer))  # type: ignore[misc]
        tracker_port = free_port()
        if with_tracker:
            add = tracker_pb2_grpc.add_TrackerServiceServicer_to_server
            tracker_port = await start_server(stack, lambda server: add(tracker, server))
        port, tag_port, upstream_port = free_port(), free_port(), free_port()
        own_settings: dict[str, object] = {
            "node_id": "me",
            "node_target": f"127.0.0.1:{own.port}",
            "tracker": f"ipv4:127.0.0.1:{tracker_port}",
            "listen_port": port,
            "tag_port": tag_port,
            "stall_timeout_seconds": 0.5,
            "upstream_urls": json.dumps({"reg.test": f"http://127.0.0.1:{upstream_port}"}),
        }
        processes = stack.enter_context(Processes(directory / "logs"))
        process = await asyncio.to_thread(
            start_service, processes, "gateway", "gateway", {**own_settings, **(settings or {})}, port=port
        )
        yield GatewayBed(
            tracker, own, upstream_port, f"http://127.0.0.1:{port}", f"http://127.0.0.1:{tag_port}", process
        )


async def start_server(stack: AsyncExitStack, add: Callable[[grpc.aio.Server], None]) -> int:
    server, health = new_server()
    add(server)
    port = bind(server, Address("127.0.0.1", 0), None)
    await server.start()
    for name in ("", "stafett.api.v1.TrackerService"):
        await health.set(name, 1)
    stack.push_async_callback(server.stop, None)
    return port
