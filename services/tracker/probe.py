"""Asks a node itself: whether it is there (the standard health check, which a frozen process does not answer), and
whether a blob of its is intact."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable

import grpc
import structlog
from grpc_health.v1 import health_pb2, health_pb2_grpc

from stafett.api.v1 import node_pb2, node_pb2_grpc
from stafett.common.cluster import Address, Node
from stafett.common.digest import Digest
from stafett.common.grpc_transport import TlsFiles, peer_channel
from stafett.tracker.liveness import LAG_MAX_SECONDS

log = structlog.get_logger()

PROBE_SECONDS = 0.5
VERIFY_SECONDS = 60.0

Probe = Callable[[Address], Awaitable[bool | None]]


def grpc_probe(tls: TlsFiles | None) -> Probe:
    """Make a probe that tells whether a node answers within half a second, whatever it answers.

    None: who was paused meanwhile, or has no time to listen, cannot tell.
    """

    async def probe(address: Address) -> bool | None:
        channel = peer_channel(address, tls)
        started_at = time.monotonic()
        try:
            check = health_pb2_grpc.HealthStub(channel).Check  # type: ignore[attr-defined]
            await check(health_pb2.HealthCheckRequest(), timeout=PROBE_SECONDS)
        except grpc.aio.AioRpcError as error:
            if error.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                return True
            return None if time.monotonic() - started_at > PROBE_SECONDS + LAG_MAX_SECONDS else False
        finally:
            await channel.close()
        return True

    return probe


def grpc_verify(tls: TlsFiles | None) -> Callable[[Node, Digest], Awaitable[None]]:
    """Make a call by which a node reads a blob again, and withdraws it when it is wrong."""

    async def verify(node: Node, digest: Digest) -> None:
        channel = peer_channel(node.address, tls)
        request = node_pb2.VerifyBlobRequest(digest=str(digest))
        try:
            answer = await node_pb2_grpc.BlobServiceStub(channel).VerifyBlob(request, timeout=VERIFY_SECONDS)
            log.warning("blob_verified", node=node.id, digest=str(digest), intact=answer.intact)
        except grpc.aio.AioRpcError as error:
            log.info("blob_not_verified", node=node.id, digest=str(digest), status=error.code().name)
        finally:
            await channel.close()

    return verify
