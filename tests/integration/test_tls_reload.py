"""Certificates change under load: no pull fails, new connections show the new ones, what does not fit is not taken."""

from __future__ import annotations

import asyncio
import shutil
import socket
import ssl
from collections.abc import AsyncGenerator
from pathlib import Path

import grpc
import pytest
import trustme
from cryptography import x509
from grpc_health.v1 import health_pb2, health_pb2_grpc

from stafett.common import tls_channel
from stafett.common.cluster import Address
from stafett.common.grpc_transport import bind, new_server, peer_channel
from stafett.common.tls_channel import RotatingChannel
from stafett.common.tls_files import TlsFiles
from tests.chaos.pullers import HttpPuller, Pulling, Tally
from tests.integration.test_tls_refusals import logged
from tests.integration.tls_cluster import HOST, Identity, TlsCluster

PULLS_BETWEEN = 4


def shown(port: int, authority: trustme.CA, files: TlsFiles) -> x509.Certificate:
    """The certificate that a server shows to a new connection from a client with these files."""
    context = ssl.create_default_context(cadata=authority.cert_pem.bytes().decode())
    context.load_cert_chain(files.certificate, files.key)
    with (
        socket.create_connection((HOST, port), timeout=5) as plain,
        context.wrap_socket(plain, server_hostname=HOST) as connection,
    ):
        found = connection.getpeercert(binary_form=True)
    assert found
    return x509.load_der_x509_certificate(found)


def in_file(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


def test_no_pull_fails_while_certificates_and_then_the_authority_are_changed(tmp_path: Path) -> None:
    old, new = trustme.CA(), trustme.CA()
    tally = Tally()
    with TlsCluster(tmp_path, old) as cluster:
        tracker = cluster.start_tracker()
        for name in cluster.node_ports:
            cluster.start_node(name)
        cluster.start_gateway()
        cluster.wait_nodes(*cluster.node_ports)
        clients = [HttpPuller(f"client{number}", [cluster.gateway_port], tally) for number in range(2)]
        servers = {"tracker": cluster.tracker_port, **cluster.node_ports}

        def rotate(signer: trustme.CA, *believed: trustme.CA) -> None:
            taken = {name: count(name) for name in cluster.parts}
            for name in cluster.parts:
                cluster.identity(name).issue(signer, *believed)
                if name in servers:
                    files = cluster.identity(name).files
                    assert shown(servers[name], signer, files) == in_file(files.certificate)
            cluster.identity("command").issue(signer, *believed)
            pulling.wait_pulls(2, lambda: all(count(name) > taken[name] for name in taken))

        def count(name: str) -> int:
            return len(logged(cluster.parts[name], "certificates_taken"))

        with Pulling(clients, cluster.images, tally, seed=0) as pulling:
            pulling.wait_pulls(PULLS_BETWEEN)
            rotate(old, old, new)
            rotate(new, new, old)
            rotate(new)
            pulling.wait_pulls(PULLS_BETWEEN)
            # Connections that are left from before do not hide that new ones fail.
            tracker.kill()
            cluster.start_tracker()
            cluster.wait_nodes(*cluster.node_ports)
            pulling.wait_pulls(PULLS_BETWEEN)
        print(tally)
        assert not tally.failures, "\n".join(map(str, tally.failures))
        for part in cluster.parts.values():
            assert not logged(part, "tls_refused"), part.log_tail()


class Frames(health_pb2_grpc.HealthServicer):
    """A health service whose answers come when the test lets them."""

    def __init__(self) -> None:
        self.go_on = asyncio.Event()

    async def Watch(  # noqa: N802
        self, request: health_pb2.HealthCheckRequest, context: object
    ) -> AsyncGenerator[health_pb2.HealthCheckResponse, None]:
        yield health_pb2.HealthCheckResponse()
        await self.go_on.wait()
        yield health_pb2.HealthCheckResponse()

    async def Check(  # noqa: N802
        self, request: health_pb2.HealthCheckRequest, context: grpc.aio.ServicerContext[object, object]
    ) -> health_pb2.HealthCheckResponse:
        (certificate,) = context.auth_context()["x509_pem_cert"]
        await context.send_initial_metadata((("shown", str(in_pem(certificate).serial_number)),))
        return health_pb2.HealthCheckResponse()


def in_pem(pem: bytes) -> x509.Certificate:
    return x509.load_pem_x509_certificate(pem)


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are looked at for each call."""
    monkeypatch.setattr(tls_channel, "LOOK_SECONDS", 0.0)


async def seen(stub: health_pb2_grpc.HealthStub) -> int:
    """Serial number of the certificate that the server saw of us."""
    call = stub.Check(health_pb2.HealthCheckRequest(), timeout=5)  # type: ignore[attr-defined]
    await call
    return int(dict(await call.initial_metadata())["shown"])


@pytest.mark.usefixtures("eager")
async def test_a_stream_goes_on_over_its_old_connection_while_new_calls_show_the_new_certificate(
    tmp_path: Path,
) -> None:
    authority, frames = trustme.CA(), Frames()
    server_files, own = Identity(tmp_path / "server"), Identity(tmp_path / "own")
    server_files.issue(authority)
    own.issue(authority)
    server = grpc.aio.server()
    health_pb2_grpc.add_HealthServicer_to_server(frames, server)
    port = bind(server, Address(HOST, 0), server_files.files)
    await server.start()
    try:
        async with peer_channel(Address(HOST, port), own.files) as channel:
            assert isinstance(channel, RotatingChannel)
            stub = health_pb2_grpc.HealthStub(channel)
            first = in_file(own.files.certificate).serial_number
            assert await seen(stub) == first
            stream = stub.Watch(health_pb2.HealthCheckRequest())  # type: ignore[attr-defined]
            await stream.read()
            for _ in range(2):
                own.issue(authority)
                newest = in_file(own.files.certificate).serial_number
                async with asyncio.timeout(10):
                    while await seen(stub) != newest:
                        pass
            assert channel.open_channels == 2, "the stream's and the newest"
            frames.go_on.set()
            await stream.read()
            assert await stream.read() is grpc.aio.EOF
            async with asyncio.timeout(10):
                while channel.open_channels > 1:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
    finally:
        await server.stop(None)


@pytest.mark.usefixtures("eager")
async def test_a_pair_that_does_not_fit_changes_nothing_for_either_side(tmp_path: Path) -> None:
    authority = trustme.CA()
    identity, other = Identity(tmp_path / "own"), Identity(tmp_path / "other")
    identity.issue(authority)
    other.issue(authority)
    server, health = new_server()
    port = bind(server, Address(HOST, 0), identity.files)
    await server.start()
    await health.set("", health_pb2.HealthCheckResponse.SERVING)
    before = in_file(identity.files.certificate)
    try:
        async with peer_channel(Address(HOST, port), identity.files) as channel:
            check = health_pb2_grpc.HealthStub(channel).Check  # type: ignore[attr-defined]
            await check(health_pb2.HealthCheckRequest(), timeout=5)
            shutil.copy(other.files.certificate, identity.files.certificate)
            await check(health_pb2.HealthCheckRequest(), timeout=5)
            assert await asyncio.to_thread(shown, port, authority, other.files) == before
            shutil.copy(other.files.key, identity.files.key)
            await check(health_pb2.HealthCheckRequest(), timeout=5)
            assert await asyncio.to_thread(shown, port, authority, other.files) == in_file(other.files.certificate)
    finally:
        await server.stop(None)
