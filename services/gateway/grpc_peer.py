"""Nodes over gRPC: byte streams from peers, and the host's own node."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import AsyncGenerator, Awaitable, Sequence
from dataclasses import dataclass

import grpc
from google.protobuf.message import DecodeError

from stafett.api.v1 import node_pb2, node_pb2_grpc
from stafett.common import errors
from stafett.common.blob_codec import Frame
from stafett.common.blob_rpc import ReadFrames, read_frames
from stafett.common.cluster import Address, Node
from stafett.common.digest import Digest
from stafett.common.grpc_tracing import Metadata, carried, traced_call
from stafett.common.grpc_transport import TlsFiles, peer_channel
from stafett.common.relaying import Received

READ_SECONDS = 4 * 3600.0
"""Deadline of a whole stream; silence is noticed much earlier, by the relay."""
VERIFY_SECONDS = 60.0
OWN_NODE_SECONDS = 0.3
RECEIVING_SECONDS = 1.0
"""What the host is receiving decides whether upstream is asked: worth waiting for a busy node."""


@dataclass
class _PeerChannel:
    channel: grpc.aio.Channel
    read: ReadFrames
    streams: int = 0


class GrpcPeers:
    """Adapter of `ports.PeerReader`; keeps a channel to each of the peers used last."""

    def __init__(self, tls: TlsFiles | None, channels_max: int = 256, node_id: str = "") -> None:
        self._tls = tls
        self._node_id = node_id
        self._channels_max = channels_max
        self._channels: OrderedDict[Address, _PeerChannel] = OrderedDict()

    def read(
        self, node: Node, digest: Digest, offset: int, length: int, *, follow: bool = False
    ) -> AsyncGenerator[Frame, None]:
        """See `ports.PeerReader`. The call carries the trace of now, not that of its first frame."""
        request = node_pb2.ReadRequest(
            digest=str(digest), offset=offset, length=length, follow=follow, reader=self._node_id
        )
        return self._read(node, digest, request, carried())

    async def _read(
        self, node: Node, digest: Digest, request: node_pb2.ReadRequest, metadata: Metadata | None
    ) -> AsyncGenerator[Frame, None]:
        peer = self._of(node.address)
        peer.streams += 1
        call = peer.read(request, timeout=READ_SECONDS, metadata=metadata)
        try:
            await self._close_idle()
            async for frame in call:
                yield frame
        except grpc.aio.AioRpcError as error:
            raise _translated(error, node.id, digest) from error
        except (DecodeError, ValueError, IndexError) as error:
            raise errors.Unavailable(node.id, "it sent a frame that cannot be read") from error
        finally:
            call.cancel()
            peer.streams -= 1

    async def verify(self, node: Node, digest: Digest) -> bool:
        """See `ports.PeerReader`."""
        request = node_pb2.VerifyBlobRequest(digest=str(digest))
        stub = node_pb2_grpc.BlobServiceStub(self._of(node.address).channel)
        try:
            return (await stub.VerifyBlob(request, timeout=VERIFY_SECONDS)).intact
        except grpc.aio.AioRpcError as error:
            raise _translated(error, node.id, digest) from error

    async def close(self) -> None:
        """Close all channels."""
        for peer in self._channels.values():
            await peer.channel.close()

    def _of(self, address: Address) -> _PeerChannel:
        if address not in self._channels:
            channel = peer_channel(address, self._tls)
            self._channels[address] = _PeerChannel(channel, read_frames(channel))
        self._channels.move_to_end(address)
        return self._channels[address]

    async def _close_idle(self) -> None:
        surplus = len(self._channels) - self._channels_max
        idle = [address for address, peer in self._channels.items() if not peer.streams]
        for closing in [self._channels.pop(address) for address in idle[: max(0, surplus)]]:
            await closing.channel.close()


class OwnNode:
    """The node of the gateway's host."""

    def __init__(self, address: Address, tls: TlsFiles | None) -> None:
        self.address = address
        self._channel = peer_channel(address, tls)
        self._stub = node_pb2_grpc.BlobServiceStub(self._channel)
        self.reachable = False

    async def size_of(self, digest: Digest) -> int | None:
        """Tell the size of a complete blob on this host; None if it is not there, or the node is away."""
        try:
            with traced_call("BlobService/Stat") as metadata:
                request = node_pb2.StatRequest(digest=str(digest))
                answer = await self._stub.Stat(request, timeout=OWN_NODE_SECONDS, metadata=metadata)
        except grpc.aio.AioRpcError as error:
            self.reachable = error.code() is grpc.StatusCode.NOT_FOUND
            return None
        self.reachable = True
        return answer.info.size_bytes if answer.info.complete else None

    async def receiving(self, digest: Digest, beyond_bytes: int = 0, wait_seconds: float = 0.0) -> Received | None:
        """See `ports.OwnHost`."""
        request = node_pb2.StatRequest(
            digest=str(digest), unfinished=True, beyond_bytes=beyond_bytes, wait_ms=round(wait_seconds * 1000)
        )
        try:
            with traced_call("BlobService/Stat") as metadata:
                answer = await self._stub.Stat(request, timeout=RECEIVING_SECONDS + wait_seconds, metadata=metadata)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.NOT_FOUND:
                return None
            raise errors.Unavailable("own node", error.code().name) from error
        return Received(answer.info.size_bytes, answer.info.available_bytes, answer.open_ingests)

    async def note_ancestors(self, digest: Digest, ancestors: Sequence[str]) -> None:
        """See `ports.OwnHost`."""
        request = node_pb2.NoteAncestorsRequest(digest=str(digest), ancestors=ancestors)
        await self._tell(self._stub.NoteAncestors(request, timeout=OWN_NODE_SECONDS))

    async def expect(self, digests: Sequence[Digest]) -> None:
        """Tell the node what its host is pulling. Raises Unavailable: if it is away."""
        request = node_pb2.ExpectBlobsRequest(digests=[str(digest) for digest in digests])
        await self._tell(self._stub.ExpectBlobs(request, timeout=OWN_NODE_SECONDS))

    async def discard_ingest(self, digest: Digest) -> None:
        """Tell the node that what its host has received of a blob is wrong. Raises Unavailable: if it is away."""
        request = node_pb2.DiscardIngestRequest(digest=str(digest))
        await self._tell(self._stub.DiscardIngest(request, timeout=OWN_NODE_SECONDS))

    async def close(self) -> None:
        """Close the channel."""
        await self._channel.close()

    async def _tell(self, call: Awaitable[object]) -> None:
        try:
            await call
        except grpc.aio.AioRpcError as error:
            raise errors.Unavailable("own node", error.code().name) from error


def _translated(error: grpc.aio.AioRpcError, node_id: str, digest: Digest) -> errors.StafettError:
    match error.code():
        case grpc.StatusCode.NOT_FOUND:
            return errors.BlobUnknown(digest)
        case grpc.StatusCode.RESOURCE_EXHAUSTED:
            return errors.Overloaded(f"streams of {node_id}", 0)
        case grpc.StatusCode.OUT_OF_RANGE:
            return errors.RangeUnsatisfiable(0)
        case grpc.StatusCode.FAILED_PRECONDITION:
            return errors.Draining()
        case code:
            return errors.Unavailable(node_id, code.name)
