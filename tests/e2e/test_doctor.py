"""The doctor names each fault of a real installation, and blames nothing else."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from stafett.cli.configure.distros import DISTROS, DistroName
from stafett.cli.configure.hosts_toml import Gateway, Registry
from stafett.cli.configure.mirror_files import carry_out, changes_for, removals
from stafett.cli.doctor.command import examine
from stafett.cli.doctor.setup import Setup
from stafett.cli.doctor.verdict import Level
from stafett.cli.local_cluster.cluster import Host, LocalCluster
from stafett.cli.local_cluster.images import MadeImage
from stafett.cli.local_cluster.processes import free_port, wait_until
from stafett.gateway.settings import GatewaySettings
from stafett.node.settings import NodeSettings
from tests.e2e.bed import Bed, digests_of
from tests.e2e.upstream import Upstream

pytestmark = [
    pytest.mark.needs_root,
    pytest.mark.needs_program("containerd"),
    pytest.mark.needs_program("docker-registry"),
]

READY = 1


@dataclass
class Clinic:
    """Two hosts with the same image; the first one is examined. `setup` may be changed by a fault."""

    bed: Bed
    image: MadeImage
    setup: Setup

    @property
    def host(self) -> Host:
        return self.bed.hosts[0]

    @property
    def peer(self) -> Host:
        return self.bed.hosts[1]

    def node(self, **changes: object) -> None:
        """Examine with other settings of the node."""
        self.setup = replace(self.setup, node=self.setup.node.model_copy(update=changes))

    def gateway(self, **changes: object) -> None:
        """Examine with other settings of the gateway."""
        self.setup = replace(self.setup, gateway=self.setup.gateway.model_copy(update=changes))

    def config(self, old: str, new: str) -> None:
        """Examine with containerd's configuration changed."""
        path = self.setup.config.with_name("changed.toml")
        text = self.setup.config.read_text()
        assert old in text
        path.write_text(text.replace(old, new))
        self.setup = replace(self.setup, config=path)

    def blamed(self) -> dict[str, Level]:
        """What is not well, by check."""
        verdicts = asyncio.run(examine(self.setup))
        assert all(verdict.remedy for verdict in verdicts if verdict.level is not Level.OK)
        return {verdict.check: verdict.level for verdict in verdicts if verdict.level is not Level.OK}

    def configure(self, gateway: Gateway | None = None) -> None:
        """Write the mirror file, for this host's gateway if no other is given."""
        root, upstream = self.setup.hosts_dir, self.bed.upstream
        own = Gateway(self.host.gateway_url, self.host.tag_url)
        carry_out(root, changes_for(root, [Registry(upstream.registry, upstream.url)], gateway or own))


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Clinic]:
    with LocalCluster() as cluster:
        bed = Bed(cluster, Upstream(cluster.directory / "upstream"), tmp_path_factory.mktemp("layouts"))
        bed.start(2)
        image = bed.push_image("lib/app")
        for host in bed.hosts:
            bed.pull(host, image.name)
            bed.wait_held(host, digests_of(image))
        host = bed.hosts[0]
        assert host.containerd is not None
        common = {"node_id": host.name, "tracker": cluster.tracker_target, "zone": host.zone}
        store = {"containerd_socket": host.containerd.socket, "content_root": host.content_root}
        node = NodeSettings.model_validate({**common, **store})
        ports = {"listen_port": host.gateway_port, "tag_port": host.tag_port}
        gateway = GatewaySettings.model_validate({**common, **ports})
        config, hosts_dir = host.containerd.directory / "config.toml", host.containerd.hosts_dir
        yield Clinic(bed, image, Setup(DISTROS[DistroName.CONTAINERD], hosts_dir, config, node, gateway))


@pytest.fixture
def clinic(healthy: Clinic) -> Iterator[Clinic]:
    before = healthy.setup
    yield healthy
    healthy.setup = before


def test_a_healthy_host_is_told_so(clinic: Clinic) -> None:
    assert clinic.blamed() == {}


Fault = Callable[[Clinic], contextlib.AbstractContextManager[None]]


@contextlib.contextmanager
def no_config_path(clinic: Clinic) -> Iterator[None]:
    clinic.config("config_path", "#config_path")
    yield


@contextlib.contextmanager
def discarded_layers(clinic: Clinic) -> Iterator[None]:
    table = '[plugins."io.containerd.grpc.v1.cri".registry]'
    clinic.config(table, f'[plugins."io.containerd.grpc.v1.cri".containerd]\n  discard_unpacked_layers = true\n{table}')
    yield


@contextlib.contextmanager
def no_mirror_files(clinic: Clinic) -> Iterator[None]:
    carry_out(clinic.setup.hosts_dir, removals(clinic.setup.hosts_dir))
    try:
        yield
    finally:
        clinic.configure()


@contextlib.contextmanager
def mirror_files_of_another_gateway(clinic: Clinic) -> Iterator[None]:
    clinic.configure(Gateway("http://127.0.0.1:1", "http://127.0.0.1:2"))
    try:
        yield
    finally:
        clinic.configure()


@contextlib.contextmanager
def a_broken_mirror_file(clinic: Clinic) -> Iterator[None]:
    file = clinic.setup.hosts_dir / clinic.bed.upstream.registry / "hosts.toml"
    written = file.read_bytes()
    file.write_bytes(written + b"[[[")
    try:
        yield
    finally:
        file.write_bytes(written)


@contextlib.contextmanager
def a_mirror_file_that_is_no_text(clinic: Clinic) -> Iterator[None]:
    file = clinic.setup.hosts_dir / clinic.bed.upstream.registry / "hosts.toml"
    written = file.read_bytes()
    file.write_bytes(b"\xff\xfe")
    try:
        yield
    finally:
        file.write_bytes(written)


@contextlib.contextmanager
def a_replaced_mirror_file(clinic: Clinic) -> Iterator[None]:
    folder = clinic.setup.hosts_dir / clinic.bed.upstream.registry
    written = (folder / "hosts.toml").read_text()
    (folder / "hosts.toml.before-stafett").write_text("# what was here\n")
    (folder / "hosts.toml").write_text('server = "https://somewhere.else"\n')
    try:
        yield
    finally:
        (folder / "hosts.toml.before-stafett").unlink()
        (folder / "hosts.toml").write_text(written)


@contextlib.contextmanager
def a_frozen_containerd(clinic: Clinic) -> Iterator[None]:
    assert clinic.host.containerd is not None
    assert clinic.host.containerd.process is not None
    clinic.host.containerd.process.signal(signal.SIGSTOP)
    try:
        yield
    finally:
        clinic.host.containerd.process.signal(signal.SIGCONT)


@contextlib.contextmanager
def a_wrong_content_root(clinic: Clinic) -> Iterator[None]:
    root = clinic.host.directory / "empty"
    (root / "blobs" / "sha256").mkdir(parents=True)
    (root / "ingest").mkdir()
    clinic.node(content_root=root)
    yield


@contextlib.contextmanager
def a_content_root_without_downloads(clinic: Clinic) -> Iterator[None]:
    root = clinic.host.directory / "partly-mounted"
    root.mkdir()
    (root / "blobs").symlink_to(clinic.host.content_root / "blobs")
    clinic.node(content_root=root)
    yield


@contextlib.contextmanager
def a_dead_gateway(clinic: Clinic) -> Iterator[None]:
    assert clinic.host.gateway is not None
    clinic.host.gateway.kill()
    try:
        yield
    finally:
        clinic.bed.cluster.start_gateway(clinic.host)


@contextlib.contextmanager
def no_tracker(clinic: Clinic) -> Iterator[None]:
    clinic.gateway(tracker=f"ipv4:127.0.0.1:{free_port()}")
    yield


@contextlib.contextmanager
def a_dead_redis(clinic: Clinic) -> Iterator[None]:
    assert clinic.bed.cluster.redis is not None
    clinic.bed.cluster.redis.kill()
    wait_until(lambda: "redis" in clinic.blamed(), "the trackers notice", 20)
    try:
        yield
    finally:
        clinic.bed.cluster.start_redis()
        wait_until(lambda: clinic.blamed() == {}, "all is well again")


@contextlib.contextmanager
def another_node_name(clinic: Clinic) -> Iterator[None]:
    clinic.node(node_id="h77")
    yield


@contextlib.contextmanager
def a_drained_node(clinic: Clinic) -> Iterator[None]:
    stafett = [sys.executable, "-m", "stafett", "drain", "--tracker", clinic.bed.cluster.tracker_target]
    subprocess.run([*stafett, clinic.host.name], check=True, capture_output=True)
    wait_until(lambda: clinic.bed.node(clinic.host).state != READY, "drained")
    try:
        yield
    finally:
        subprocess.run([*stafett, clinic.host.name, "--undo"], check=True, capture_output=True)
        wait_until(lambda: clinic.bed.node(clinic.host).state == READY, "back in service")


@contextlib.contextmanager
def a_peer_behind_a_firewall(clinic: Clinic) -> Iterator[None]:
    for settings in ({"advertise_port": free_port()}, {}):
        assert clinic.peer.node is not None
        clinic.peer.node.stop()
        clinic.bed.cluster.start_node(clinic.peer, settings)
        clinic.bed.wait_held(clinic.peer, digests_of(clinic.image))
        if settings:
            yield


@contextlib.contextmanager
def a_damaged_copy(clinic: Clinic) -> Iterator[None]:
    blobs = [path for path in (clinic.peer.content_root / "blobs" / "sha256").iterdir() if path.stat().st_size < 2**20]
    before = {path: path.read_bytes() for path in blobs}
    for path, content in before.items():
        path.chmod(0o644)
        path.write_bytes(bytes([content[0] ^ 1]) + content[1:])
    try:
        yield
    finally:
        for path, content in before.items():
            path.write_bytes(content)


@contextlib.contextmanager
def an_image_of_another_registry(clinic: Clinic) -> Iterator[None]:
    clinic.bed.ctr(clinic.host, "images", "tag", clinic.image.name, "other.test/app:1")
    try:
        yield
    finally:
        clinic.bed.ctr(clinic.host, "images", "rm", "other.test/app:1")


@contextlib.contextmanager
def a_denied_image(clinic: Clinic) -> Iterator[None]:
    clinic.gateway(deny=(f"{clinic.bed.upstream.registry}/lib/*",))
    yield


FAULTS: list[tuple[Fault, dict[str, Level]]] = [
    (no_config_path, {"config-path": Level.FAIL}),
    (discarded_layers, {"discard-layers": Level.FAIL}),
    (no_mirror_files, {"mirror-files": Level.FAIL}),
    (mirror_files_of_another_gateway, {"mirror-files": Level.FAIL}),
    (a_broken_mirror_file, {"mirror-files": Level.FAIL}),
    (a_mirror_file_that_is_no_text, {"mirror-files": Level.FAIL}),
    (a_replaced_mirror_file, {"mirror-files": Level.FAIL}),
    (a_frozen_containerd, {"store": Level.FAIL}),
    (a_wrong_content_root, {"content-root": Level.FAIL}),
    (a_content_root_without_downloads, {"ingests": Level.FAIL}),
    (a_dead_gateway, {"gateway": Level.FAIL, "tag-port": Level.FAIL}),
    (no_tracker, {"tracker": Level.FAIL}),
    (a_dead_redis, {"redis": Level.FAIL}),
    (another_node_name, {"lease": Level.FAIL}),
    (a_drained_node, {"lease": Level.FAIL}),
    (a_peer_behind_a_firewall, {"peers": Level.FAIL}),
    (a_damaged_copy, {"test-read": Level.FAIL}),
    (an_image_of_another_registry, {"registries": Level.WARN}),
    (a_denied_image, {"allow-list": Level.WARN}),
]


@pytest.mark.parametrize(("fault", "named"), FAULTS, ids=[fault.__name__ for fault, _ in FAULTS])
def test_a_fault_is_named_and_nothing_else_is_blamed(clinic: Clinic, fault: Fault, named: dict[str, Level]) -> None:
    with fault(clinic):
        blamed = clinic.blamed()
    assert blamed == named


def test_a_proxy_of_containerds_that_catches_the_gateway_is_named(clinic: Clinic) -> None:
    containerd = clinic.host.containerd
    assert containerd is not None
    assert containerd.process is not None
    containerd.process.stop()
    containerd.process = clinic.bed.cluster.processes.start(
        "containerd-proxied",
        ["containerd", "--config", clinic.setup.config],
        environment={"HTTP_PROXY": "http://proxy.corp:3128"},
        ready=lambda: containerd.ctr("version").returncode == 0,
    )
    clinic.configure(Gateway("http://10.255.255.1:7462", clinic.host.tag_url))
    assert clinic.blamed() == {"mirror-files": Level.FAIL, "proxy": Level.FAIL}
    clinic.configure()
    assert clinic.blamed() == {}, "loopback is never asked through a proxy"


def test_the_command_reads_the_services_settings_and_exits_by_the_worst_line(clinic: Clinic, tmp_path: Path) -> None:
    node, gateway = clinic.setup.node, clinic.setup.gateway
    environment = {
        **os.environ,
        "STAFETT_NODE_NODE_ID": node.node_id,
        "STAFETT_NODE_CONTAINERD_SOCKET": str(node.containerd_socket),
        "STAFETT_NODE_CONTENT_ROOT": str(node.content_root),
        "STAFETT_GATEWAY_TRACKER": gateway.tracker,
        "STAFETT_GATEWAY_LISTEN_PORT": str(gateway.listen_port),
        "STAFETT_GATEWAY_TAG_PORT": str(gateway.tag_port),
    }
    command = [sys.executable, "-m", "stafett", "doctor", "--hosts-dir", str(clinic.setup.hosts_dir)]

    def run(*options: str | Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*command, *options], env=environment, capture_output=True, text=True, check=False)

    good = run("--config", clinic.setup.config)
    assert good.returncode == 0, good.stdout + good.stderr
    assert "ok   lease: " in good.stdout
    bad = run("--config", tmp_path / "absent", "--json")
    assert bad.returncode == 1
    assert json.loads(bad.stdout)["worst"] == "warn"
