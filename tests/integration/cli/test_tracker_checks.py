"""Each replica behind one name is asked, with certificates that are for the name alone."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trustme
from grpc_health.v1.health_pb2 import HealthCheckResponse

from stafett.api.v1 import tracker_pb2, tracker_pb2_grpc
from stafett.cli.configure.distros import DistroName, distro_of
from stafett.cli.doctor.setup import Setup
from stafett.cli.doctor.tracker_checks import check_trackers
from stafett.cli.doctor.verdict import Level
from stafett.cli.local_cluster.processes import free_port
from stafett.common.cluster import Address
from stafett.common.grpc_transport import TlsFiles, bind, new_server
from stafett.gateway.settings import GatewaySettings
from stafett.node.settings import NodeSettings


class Replica(tracker_pb2_grpc.TrackerServiceServicer):
    """A tracker that says only whether it answers from memory."""

    def __init__(self, *, stale: bool) -> None:
        self._stale = stale

    async def ListNodes(self, request: object, context: object) -> tracker_pb2.ListNodesResponse:  # noqa: N802
        return tracker_pb2.ListNodesResponse(stale=self._stale, now_unix_ms=round(time.time() * 1000))


@asynccontextmanager
async def replica(address: Address, tls: TlsFiles, *, stale: bool) -> AsyncIterator[None]:
    server, health = new_server()
    bind(server, address, tls)
    tracker_pb2_grpc.add_TrackerServiceServicer_to_server(Replica(stale=stale), server)  # type: ignore[abstract]
    await server.start()
    await health.set("stafett.api.v1.TrackerService", HealthCheckResponse.SERVING)
    try:
        yield
    finally:
        await server.stop(grace=None)


@pytest.fixture
def tls(tmp_path: Path) -> TlsFiles:
    """A certificate for the name, not for the addresses."""
    authority = trustme.CA()
    certificate = authority.issue_cert("localhost")
    authority.cert_pem.write_to_path(tmp_path / "authority.pem")
    certificate.private_key_pem.write_to_path(tmp_path / "key.pem")
    certificate.cert_chain_pems[0].write_to_path(tmp_path / "certificate.pem")
    return TlsFiles(tmp_path / "certificate.pem", tmp_path / "key.pem", tmp_path / "authority.pem")


async def test_a_replica_that_calls_do_not_happen_to_reach_is_looked_at_too(
    tls: TlsFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    port, hosts = free_port(), ("127.0.0.1", "127.0.0.2", "127.0.0.3")

    async def lookup(*_: object, **__: object) -> list[tuple[object, object, object, str, tuple[str, int]]]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (host, port)) for host in hosts]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", lookup)
    target = f"dns:///localhost:{port}"
    files = {"tls_certificate": tls.certificate, "tls_key": tls.key, "tls_authority": tls.authority}
    told = {"tracker": target, **files}
    setup = Setup(
        distro_of(DistroName.CONTAINERD),
        NodeSettings.model_validate(told),
        GatewaySettings.model_validate(told),
        "the test",
    )
    async with (
        replica(Address(hosts[0], port), tls, stale=False),
        replica(Address(hosts[1], port), tls, stale=True),
    ):
        verdicts, nodes = await check_trackers(setup)
    found = {verdict.check: (verdict.level, verdict.said) for verdict in verdicts if verdict.level is not Level.OK}
    assert set(found) == {"tracker", "redis"}
    assert found["tracker"][0] is Level.WARN
    assert f"{hosts[2]}:{port} does not answer" in found["tracker"][1]
    assert found["redis"] == (Level.FAIL, f"{hosts[1]}:{port} cannot reach Redis, and answer from memory")
    assert nodes == [], "the fresh one knows none"
