"""Who is refused, and what the logs and commands say of it: which files, which peer, and what to check."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import structlog
import trustme
from grpc_health.v1 import health_pb2
from typer.testing import CliRunner

from stafett.cli.app import app
from stafett.cli.local_cluster.processes import Process, free_port, wait_until
from stafett.common.cluster import Address
from stafett.common.grpc_transport import bind, new_server
from stafett.common.tls_files import TlsFiles
from tests.integration.tls import write_identity
from tests.integration.tls_cluster import HOST, Identity, TlsCluster

STRANGER = trustme.CA()
LONG_AGO = datetime.now(UTC) - timedelta(days=1)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TlsCluster]:
    with TlsCluster(tmp_path_factory.mktemp("tls"), trustme.CA()) as running:
        running.start_tracker(GRPC_VERBOSITY="info")
        wait_until(lambda: nodes(running, running.identity("command").files).exit_code == 0, "tracker serving")
        yield running


@dataclass(frozen=True)
class Said:
    exit_code: int
    output: str


def nodes(cluster: TlsCluster, tls: TlsFiles | None, target: str = "") -> Said:
    """What `stafett nodes` says with these files."""
    names = {"CERTIFICATE": "certificate", "KEY": "key", "AUTHORITY": "authority", "PEER_NAME": "peer_name"}
    environment = {f"STAFETT_TLS_{name}": str(getattr(tls, field)) for name, field in names.items()} if tls else {}
    result = CliRunner(env=environment).invoke(app, ["nodes", "--tracker", target or cluster.tracker_target])
    return Said(result.exit_code, result.output)


def logged(process: Process, event: str) -> list[dict[str, str]]:
    """Lines of a part's log with this event."""
    lines = [line for line in process.log.read_text("utf-8", "replace").splitlines() if line.startswith("{")]
    return [line for line in map(json.loads, lines) if line["event"] == event]


def mixed(cluster: TlsCluster, folder: Path, signer: trustme.CA, not_after: datetime | None = None) -> TlsFiles:
    """Files of a part that believes the cluster's authority, its certificate signed by this one."""
    files = write_identity(folder, signer, HOST, not_after=not_after)
    cluster.authority.cert_pem.write_to_path(files.authority)
    return files


def test_a_part_that_believes_another_authority_says_whose_certificate_it_refuses(cluster: TlsCluster) -> None:
    cluster.identity("node-b").issue(STRANGER)
    node = cluster.start_node("node-b")
    wait_until(lambda: bool(logged(node, "tls_refused")), "refusal logged")
    (line,) = logged(node, "tls_refused")
    files = cluster.identity("node-b").files
    assert line["peer"] == cluster.tracker_target
    assert line["reason"] == f"its certificate is not signed by an authority in {files.authority}"
    assert line["certificate"] == str(files.certificate)
    assert "node-b" not in cluster.nodes()
    cluster.identity("node-b").issue(cluster.authority)
    cluster.wait_nodes("node-b")
    node.stop()


def test_a_part_whose_certificate_is_refused_says_which_one(cluster: TlsCluster) -> None:
    cluster.identity("node-a").issue(STRANGER, cluster.authority)
    node = cluster.start_node("node-a")
    wait_until(lambda: bool(logged(node, "tls_refused")), "refusal logged")
    (line,) = logged(node, "tls_refused")
    assert "it hung up in the handshake" in line["reason"]
    assert str(cluster.identity("node-a").files.certificate) in line["reason"]
    assert "node-a" not in cluster.nodes()
    node.stop()


def test_no_part_starts_with_an_expired_certificate(cluster: TlsCluster, tmp_path: Path) -> None:
    files = write_identity(tmp_path, cluster.authority, HOST, not_after=LONG_AGO)
    tls = [f"--tls-{name}={getattr(files, name)}" for name in ("certificate", "key", "authority")]
    host = ["--node-id", "late", "--tracker", cluster.tracker_target, "--metrics-port", "0"]
    options: dict[str, list[str]] = {
        "tracker": ["--metrics-port", "0"],
        "node": host,
        "gateway": [*host, "--tag-port", "0", "--node-target", f"{HOST}:1"],
    }
    started = [
        cluster.processes.start(
            f"late-{part}", [sys.executable, "-m", "stafett", part, "--listen-port", "0", *tls, *own]
        )
        for part, own in options.items()
    ]
    for process in started:
        assert process.popen.wait(30) == 1, process.log_tail()
        assert f"{files.certificate} has expired at" in process.log_tail()
        assert "renew it, or set this host's clock" in process.log_tail()


def test_a_list_of_addresses_needs_a_name_that_all_certificates_have(cluster: TlsCluster) -> None:
    files, trackers = cluster.identity("command").files, f"{cluster.tracker_target},{HOST}:{free_port()}"
    assert nodes(cluster, files, trackers).exit_code == 1
    assert nodes(cluster, replace(files, peer_name="localhost"), trackers).exit_code == 0


async def test_a_certificate_that_expires_in_use_is_refused_and_both_sides_say_so(
    cluster: TlsCluster, tmp_path: Path
) -> None:
    identity = Identity(tmp_path / "short")
    identity.issue(cluster.authority)
    files = mixed(cluster, identity.files.key.parent, cluster.authority, datetime.now(UTC) + timedelta(seconds=2))
    server, health = new_server()
    port = bind(server, Address(HOST, 0), files)
    await server.start()

    async def said() -> str:
        """What the command says: the server has no methods of a tracker, so it fails in any case."""
        return (
            await asyncio.to_thread(nodes, cluster, cluster.identity("command").files, f"ipv4:{HOST}:{port}")
        ).output

    try:
        await health.set("stafett.api.v1.TrackerService", health_pb2.HealthCheckResponse.SERVING)
        with structlog.testing.capture_logs() as logs:
            async with asyncio.timeout(30):
                while "its certificate has expired" not in (refused := await said()):
                    pass
        assert "renew it there, or set the clocks of both hosts" in refused
        expired = [line for line in logs if line["event"] == "certificate_expired"]
        assert [line["certificate"] for line in expired] == [str(files.certificate)]
        identity.issue(cluster.authority)
        assert "Method not found" in await said(), "connected again, without a restart"
    finally:
        await server.stop(None)


def test_who_shows_no_certificate_is_refused(cluster: TlsCluster) -> None:
    def hears(own: TlsFiles | None) -> bytes:
        """The first bytes of HTTP/2, which a server sends at once to whom it takes."""
        context = ssl.create_default_context(cafile=str(cluster.identity("command").files.authority))
        context.set_alpn_protocols(["h2"])
        if own:
            context.load_cert_chain(own.certificate, own.key)
        with (
            socket.create_connection((HOST, cluster.tracker_port), timeout=10) as plain,
            context.wrap_socket(plain, server_hostname=HOST) as connection,
        ):
            return connection.recv(100)

    assert hears(cluster.identity("command").files)
    assert not hears(None)
    log = cluster.parts["tracker"].log.read_text()
    assert "PEER_DID_NOT_RETURN_A_CERTIFICATE" in log, "docs/operations.md says that GRPC_VERBOSITY shows it"


def test_the_command_says_why_it_is_refused(cluster: TlsCluster, tmp_path: Path) -> None:
    without = nodes(cluster, None)
    assert (without.exit_code, "it hung up on plain text" in without.output) == (1, True), without.output
    assert "set by STAFETT_TLS_*" in without.output

    stranger = write_identity(tmp_path, STRANGER, HOST)
    wrong = nodes(cluster, stranger)
    assert wrong.exit_code == 1
    assert f"its certificate is not signed by an authority in {stranger.authority}" in wrong.output

    refused = nodes(cluster, mixed(cluster, tmp_path, STRANGER))
    assert refused.exit_code == 1
    assert f"it refuses our certificate {stranger.certificate}" in refused.output

    expired = nodes(cluster, mixed(cluster, tmp_path, cluster.authority, LONG_AGO))
    assert expired.exit_code == 1
    assert f"{stranger.certificate} has expired" in expired.output
    assert "Traceback" not in without.output + wrong.output + refused.output + expired.output
