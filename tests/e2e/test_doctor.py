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

from stafett.cli.configure.changing import carry_out
from stafett.cli.configure.distros import DistroName, distro_of
from stafett.cli.configure.hosts_toml import Gateway, Registry
from stafett.cli.configure.mirror_files import changes_for, removals
from stafett.cli.doctor.command import examine
from stafett.cli.doctor.setup import Setup
from stafett.cli.doctor.verdict import Level
from stafett.cli.local_cluster.cluster import Host, LocalCluster
from stafett.cli.local_cluster.images import MadeImage
from stafett.cli.local_cluster.parts import is_serving, start_service
from stafett.cli.local_cluster.processes import free_port, wait_until
from stafett.common.oci_layout import ensure_layout
from stafett.gateway.settings import GatewaySettings
from stafett.node.settings import NodeSettings
from tests.e2e.bed import Bed, digests_of
from tests.e2e.cri import pull_image
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
        text = self.setup.distro.config.read_text()
        assert old in text
        self.config_file("changed.toml").write_text(text.replace(old, new))

    def config_file(self, name: str) -> Path:
        """Examine with another file as containerd's configuration, beside the right one."""
        path = self.setup.distro.config.with_name(name)
        self.setup = replace(self.setup, distro=replace(self.setup.distro, config=path))
        return path

    def blamed(self) -> dict[str, Level]:
        """What is not well, by check."""
        verdicts = asyncio.run(examine(self.setup))
        assert all(verdict.remedy for verdict in verdicts if verdict.level is not Level.OK)
        return {verdict.check: verdict.level for verdict in verdicts if verdict.level is not Level.OK}

    def configure(self, gateway: Gateway | None = None) -> None:
        """Write the mirror file, for this host's gateway if no other is given."""
        root, upstream = self.setup.distro.hosts_dir, self.bed.upstream
        own = Gateway(self.host.gateway_url, self.host.tag_url)
        carry_out(root, changes_for(root, [Registry(upstream.registry, upstream.url)], gateway or own))


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Clinic]:
    with LocalCluster() as cluster:
        bed = Bed(cluster, Upstream(cluster.directory / "upstream"), tmp_path_factory.mktemp("layouts"))
        bed.start(2, cri=True)
        image = bed.push_image("lib/app")
        for host in bed.hosts:
            assert host.containerd is not None
            pull_image(str(host.containerd.socket), image.name)
            bed.wait_held(host, digests_of(image))
        host = bed.hosts[0]
        assert host.containerd is not None
        assert "\nsha256:" in bed.ctr(host, "--namespace", "k8s.io", "images", "ls", "-q"), "what CRI keeps beside"
        common = {"node_id": host.name, "tracker": cluster.tracker_target, "zone": host.zone}
        store = {"containerd_socket": host.containerd.socket, "content_root": host.content_root}
        node = NodeSettings.model_validate({**common, **store})
        ports = {"listen_port": host.gateway_port, "tag_port": host.tag_port}
        target = {"node_target": f"127.0.0.1:{host.node_port}"}
        gateway = GatewaySettings.model_validate({**common, **ports, **target})
        config, hosts_dir = host.containerd.directory / "config.toml", host.containerd.hosts_dir
        distro = distro_of(DistroName.CONTAINERD, hosts_dir, config)
        yield Clinic(bed, image, Setup(distro, node, gateway, "the test"))


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
def a_configuration_of_version_3_with_the_tables_of_version_2(clinic: Clinic) -> Iterator[None]:
    clinic.config("version = 2", "version = 3")
    yield


@contextlib.contextmanager
def old_mirrors_beside_config_path(clinic: Clinic) -> Iterator[None]:
    table = '[plugins."io.containerd.grpc.v1.cri".registry.mirrors."docker.io"]'
    clinic.config("[ttrpc]", f'{table}\n  endpoint = ["https://mirror.gcr.io"]\n[ttrpc]')
    yield


@contextlib.contextmanager
def no_configuration(clinic: Clinic) -> Iterator[None]:
    clinic.config_file("absent.toml")
    yield


@contextlib.contextmanager
def discarded_layers(clinic: Clinic) -> Iterator[None]:
    table = '[plugins."io.containerd.grpc.v1.cri".registry]'
    clinic.config(table, f'[plugins."io.containerd.grpc.v1.cri".containerd]\n  discard_unpacked_layers = true\n{table}')
    yield


@contextlib.contextmanager
def no_mirror_files(clinic: Clinic) -> Iterator[None]:
    carry_out(clinic.setup.distro.hosts_dir, removals(clinic.setup.distro.hosts_dir))
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
    file = clinic.setup.distro.hosts_dir / clinic.bed.upstream.registry / "hosts.toml"
    written = file.read_bytes()
    file.write_bytes(written + b"[[[")
    try:
        yield
    finally:
        file.write_bytes(written)


@contextlib.contextmanager
def a_mirror_file_that_is_no_text(clinic: Clinic) -> Iterator[None]:
    file = clinic.setup.distro.hosts_dir / clinic.bed.upstream.registry / "hosts.toml"
    written = file.read_bytes()
    file.write_bytes(b"\xff\xfe")
    try:
        yield
    finally:
        file.write_bytes(written)


@contextlib.contextmanager
def a_replaced_mirror_file(clinic: Clinic) -> Iterator[None]:
    folder = clinic.setup.distro.hosts_dir / clinic.bed.upstream.registry
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
def a_stopped_containerd(clinic: Clinic) -> Iterator[None]:
    assert clinic.host.containerd is not None
    assert clinic.host.containerd.process is not None
    clinic.host.containerd.process.stop()
    try:
        yield
    finally:
        clinic.host.containerd.start(clinic.bed.cluster.processes, "containerd-again")
        clinic.bed.wait_held(clinic.host, digests_of(clinic.image))


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
def a_tag_port_that_is_not_where_it_should_be(clinic: Clinic) -> Iterator[None]:
    for settings in ({"tag_port": free_port()}, {}):
        assert clinic.host.gateway is not None
        clinic.host.gateway.stop()
        clinic.bed.cluster.start_gateway(clinic.host, settings)
        if settings:
            yield


@contextlib.contextmanager
def a_dead_node(clinic: Clinic) -> Iterator[None]:
    assert clinic.host.node is not None
    clinic.host.node.kill()
    try:
        yield
    finally:
        clinic.bed.cluster.start_node(clinic.host)
        clinic.bed.wait_held(clinic.host, digests_of(clinic.image))
        wait_until(lambda: clinic.bed.node(clinic.host).state == READY, "READY again")


@contextlib.contextmanager
def no_tracker(clinic: Clinic) -> Iterator[None]:
    nowhere = f"ipv4:127.0.0.1:{free_port()}"
    clinic.gateway(tracker=nowhere)
    clinic.node(tracker=nowhere)
    yield


@contextlib.contextmanager
def no_tracker_where_the_node_looks_for_it(clinic: Clinic) -> Iterator[None]:
    clinic.node(tracker=f"ipv4:127.0.0.1:{free_port()}")
    yield


@contextlib.contextmanager
def a_dead_replica(clinic: Clinic) -> Iterator[None]:
    dead = clinic.bed.cluster.trackers[1]
    dead.process.kill()
    try:
        yield
    finally:
        clinic.bed.cluster.start_tracker(port=dead.port)


@contextlib.contextmanager
def a_replica_whose_clock_is_off(clinic: Clinic) -> Iterator[None]:
    port, cluster = free_port(), clinic.bed.cluster
    hook = {"PYTHONPATH": str(Path(__file__).parent / "clock_hook"), "CLOCK_OFF_SECONDS": "60"}
    settings = {"listen_port": port, "redis_url": f"redis://127.0.0.1:{cluster.redis_port}/0"}
    process = start_service(cluster.processes, "tracker", "tracker-off", settings, port=port, environment=hook)
    try:
        wait_until(lambda: is_serving(port), "tracker-off serving")
        clinic.gateway(tracker=f"{cluster.tracker_target},127.0.0.1:{port}")
        yield
    finally:
        process.stop()


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
    clinic.gateway(node_id="h77")
    yield


@contextlib.contextmanager
def a_node_that_its_gateway_calls_otherwise(clinic: Clinic) -> Iterator[None]:
    clinic.gateway(node_id="h77")
    yield


@contextlib.contextmanager
def certificates_that_are_not_there(clinic: Clinic) -> Iterator[None]:
    absent = clinic.host.directory / "absent.pem"
    clinic.gateway(tls_certificate=absent, tls_key=absent, tls_authority=absent)
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
    in_namespace = ("--namespace", "k8s.io", "images")
    clinic.bed.ctr(clinic.host, *in_namespace, "tag", clinic.image.name, "other.test/app:1")
    try:
        yield
    finally:
        clinic.bed.ctr(clinic.host, *in_namespace, "rm", "other.test/app:1")


@contextlib.contextmanager
def a_denied_image(clinic: Clinic) -> Iterator[None]:
    clinic.gateway(deny=(f"{clinic.bed.upstream.registry}/lib/*",))
    yield


FAULTS: list[tuple[Fault, dict[str, Level]]] = [
    (no_config_path, {"config-path": Level.FAIL}),
    (a_configuration_of_version_3_with_the_tables_of_version_2, {"config-path": Level.FAIL}),
    (old_mirrors_beside_config_path, {"config-path": Level.FAIL}),
    (no_configuration, {"config-path": Level.FAIL}),
    (discarded_layers, {"discard-layers": Level.FAIL}),
    (no_mirror_files, {"mirror-files": Level.FAIL}),
    (mirror_files_of_another_gateway, {"mirror-files": Level.FAIL}),
    (a_broken_mirror_file, {"mirror-files": Level.FAIL}),
    (a_mirror_file_that_is_no_text, {"mirror-files": Level.FAIL}),
    (a_replaced_mirror_file, {"mirror-files": Level.FAIL}),
    (a_frozen_containerd, {"store": Level.FAIL}),
    (a_stopped_containerd, {"store": Level.FAIL}),
    (a_wrong_content_root, {"content-root": Level.FAIL}),
    (a_content_root_without_downloads, {"ingests": Level.FAIL}),
    (a_dead_gateway, {"gateway": Level.FAIL, "tag-port": Level.FAIL}),
    (a_tag_port_that_is_not_where_it_should_be, {"tag-port": Level.FAIL}),
    (a_dead_node, {"node": Level.FAIL}),
    (no_tracker, {"tracker": Level.FAIL}),
    (no_tracker_where_the_node_looks_for_it, {"tracker": Level.FAIL}),
    (a_dead_replica, {"tracker": Level.WARN}),
    (a_replica_whose_clock_is_off, {"clock": Level.FAIL}),
    (a_dead_redis, {"redis": Level.FAIL}),
    (another_node_name, {"lease": Level.FAIL}),
    (a_node_that_its_gateway_calls_otherwise, {"node": Level.FAIL}),
    (certificates_that_are_not_there, {"tls": Level.FAIL}),
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
        ["containerd", "--config", clinic.setup.distro.config],
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
        "STAFETT_NODE_TRACKER": node.tracker,
        "STAFETT_GATEWAY_NODE_ID": gateway.node_id,
        "STAFETT_GATEWAY_NODE_TARGET": gateway.node_target,
        "STAFETT_GATEWAY_TRACKER": gateway.tracker,
        "STAFETT_GATEWAY_LISTEN_PORT": str(gateway.listen_port),
        "STAFETT_GATEWAY_TAG_PORT": str(gateway.tag_port),
    }
    command = [sys.executable, "-m", "stafett", "doctor", "--hosts-dir", str(clinic.setup.distro.hosts_dir)]

    def run(*options: str | Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*command, *options], env=environment, capture_output=True, text=True, check=False)

    good = run("--config", clinic.setup.distro.config)
    assert good.returncode == 0, good.stdout + good.stderr
    assert "ok   lease: " in good.stdout
    bad = run("--config", tmp_path / "absent", "--json")
    assert bad.returncode == 2
    assert json.loads(bad.stdout)["worst"] == "fail"


def test_without_an_environment_the_running_services_tell_their_settings(own_bed: Bed) -> None:
    """In a mount namespace of their own, so that nothing else that runs here can be meant."""
    cluster = own_bed.cluster
    cluster.start_redis()
    cluster.start_tracker()
    anchor = cluster.processes.start("anchor", ["unshare", "--mount", "sleep", "infinity"])
    inside = ["nsenter", f"--mount=/proc/{anchor.pid}/ns/mnt", sys.executable, "-m", "stafett"]
    wait_until(lambda: os.readlink(f"/proc/{anchor.pid}/ns/mnt") != os.readlink("/proc/self/ns/mnt"), "own namespace")
    layout, port, mirror, tags = cluster.directory / "layout", free_port(), free_port(), free_port()
    ensure_layout(layout)
    common = ["--node-id", "told", "--tracker", cluster.tracker_target, "--content-root", str(layout)]
    cluster.processes.start("node", [*inside, "node", *common, "--store", "oci-layout", "--listen-port", str(port)])
    cluster.processes.start(
        "gateway",
        [*inside, "gateway", *common, "--node-target", f"127.0.0.1:{port}", "--listen-port", str(mirror)],
        environment={"STAFETT_GATEWAY_TAG_PORT": str(tags)},
    )
    clean = {name: value for name, value in os.environ.items() if not name.startswith("STAFETT_")}

    def blamed() -> dict[str, str]:
        done = subprocess.run([*inside, "doctor", "--json"], env=clean, capture_output=True, text=True, check=False)
        verdicts = json.loads(done.stdout)["verdicts"]
        return {each["check"]: each["level"] for each in verdicts if each["level"] != "ok"}

    wait_until(lambda: blamed() == {"peers": "warn"}, "all is well but that there is no other host", 30)
