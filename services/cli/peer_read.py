"""Reads a small blob from a node, for commands."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

from stafett.common.cluster import Holder
from stafett.common.digest import Digest
from stafett.common.grpc_transport import TlsFiles
from stafett.gateway.grpc_peer import GrpcPeers

READ_SECONDS = 3.0


async def read_small(holder: Holder, digest: Digest, tls: TlsFiles | None = None) -> bytes:
    """Read all of a blob into memory; whether it is right is for the caller to check.

    Raises:
        TimeoutError: after three seconds. Unavailable, Overloaded, BlobUnknown, Draining: see `ports.PeerReader`.
    """
    peers = GrpcPeers(tls)
    content = b""
    try:
        async with (
            asyncio.timeout(READ_SECONDS),
            aclosing(peers.read(holder.node, digest, 0, holder.size_bytes)) as frames,
        ):
            async for frame in frames:
                content += bytes(frame) if isinstance(frame, bytes | memoryview) else b""
    finally:
        await peers.close()
    return content
