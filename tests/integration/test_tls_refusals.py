"""Who is refused, and what the logs and commands say of it: which files, which peer, and what to check."""

from __future__ import annotations

import json
import socket
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trustme
from typer.testing import CliRunner

from stafett.cli.app import app
from stafett.cli.local_cluster.processes import Process, wait_until
from stafett.common.errors import StartupFailed
from stafett.common.tls_files import TlsFiles
from tests.integration.tls import write_identity
from tests.integration.tls_cluster import HOST, TlsCluster

STRANGER = trustme.CA()
LONG_AGO = datetime.now(UTC) - timedelta(days=1)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TlsCluster]:
    with TlsCluster(tmp_path_factory.mktemp("tls"), trustme.CA()) as running:
        running.start_tracker()
        wait_until(lambda: nodes(running, running.identity("command").files).exit_code == 0, "tracker serving")
        yield running


@dataclass(frozen=True)
class Said:
    exit_code: int
    output: str


def nodes(cluster: TlsCluster, tls: TlsFiles | None) -> Said:
    """What `stafett nodes` says with these files."""
    names = {"CERTIFICATE": "certificate", "KEY": "key", "AUTHORITY": "authority"}
    environment = {f"STAFETT_TLS_{name}": str(getattr(tls, field)) for name, field in names.items()} if tls else {}
    result = CliRunner(env=environment).invoke(app, ["nodes", "--tracker", cluster.tracker_target])
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


@pytest.mark.parametrize(("service", "name"), [("tracker", "t"), ("node", "n"), ("gateway", "g")])
def test_no_part_starts_with_an_expired_certificate(cluster: TlsCluster, service: str, name: str) -> None:
    identity = cluster.identity(name)
    write_identity(identity.files.key.parent, cluster.authority, HOST, not_after=LONG_AGO)
    settings = {"node": {"node_id": "n", "tracker": cluster.tracker_target}}
    settings["gateway"] = {**settings["node"], "tag_port": "0", "node_target": f"{HOST}:1"}
    with pytest.raises(StartupFailed, match=r"tls\.crt has expired at .*: renew it, or set this host's clock"):
        cluster.start(name, service, 0, **settings.get(service, {}))
    assert cluster.processes.children[-1].popen.returncode == 1


def test_an_expired_certificate_of_a_part_that_runs_is_refused_and_both_sides_say_so(
    cluster: TlsCluster, tmp_path: Path
) -> None:
    soon = datetime.now(UTC) + timedelta(seconds=4)
    folder = cluster.identity("short").files.key.parent
    files = mixed(cluster, folder, cluster.authority, not_after=soon)
    tracker = cluster.start("short", "tracker", cluster.other_port, redis_url=f"redis://{HOST}:{cluster.redis_port}/0")
    command = cluster.identity("command").files
    target = f"ipv4:{HOST}:{cluster.other_port}"
    environment = {
        "STAFETT_TLS_CERTIFICATE": str(command.certificate),
        "STAFETT_TLS_KEY": str(command.key),
        "STAFETT_TLS_AUTHORITY": str(command.authority),
    }

    def said() -> str:
        return CliRunner(env=environment).invoke(app, ["nodes", "--tracker", target]).output

    wait_until(lambda: "its certificate has expired" in said(), "refused as expired")
    assert "renew it there, or set the clocks of both hosts" in said()
    (line,) = logged(tracker, "certificate_expired")
    assert line["certificate"] == str(files.certificate)
    cluster.identity("short").issue(cluster.authority)
    wait_until(lambda: "address" in said(), "believed again, without a restart")
    tracker.stop()


def test_who_shows_no_certificate_is_refused(cluster: TlsCluster) -> None:
    context = ssl.create_default_context(cafile=str(cluster.identity("command").files.authority))
    context.set_alpn_protocols(["h2"])
    with (
        socket.create_connection((HOST, cluster.tracker_port), timeout=5) as plain,
        context.wrap_socket(plain, server_hostname=HOST) as connection,
        pytest.raises(ssl.SSLError, match="certificate required"),
    ):
        connection.recv(100)


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
