"""Puts a cluster together: Redis, trackers, and hosts with a store, a node and a gateway each."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from stafett.cli.local_cluster.containerd import Containerd
from stafett.cli.local_cluster.parts import is_serving, start_redis, start_service
from stafett.cli.local_cluster.processes import HERE, LOOPBACK, Place, Process, Processes, free_port, wait_until
from stafett.common.errors import StartupFailed
from stafett.common.oci_layout import ensure_layout


@dataclass
class Host:
    """One host: its place, its store, and the two services on it."""

    name: str
    zone: str
    rack: str
    directory: Path
    node_port: int
    gateway_port: int
    tag_port: int
    place: Place = HERE
    containerd: Containerd | None = None
    node: Process | None = None
    gateway: Process | None = None

    @property
    def content_root(self) -> Path:
        """Folder above blobs/: containerd's content root, or the layout directory."""
        return self.containerd.content_root if self.containerd else self.directory / "layout"

    @property
    def gateway_url(self) -> str:
        """URL of the mirror port, on the host's own loopback."""
        return f"http://127.0.0.1:{self.gateway_port}"

    @property
    def tag_url(self) -> str:
        return f"http://127.0.0.1:{self.tag_port}"


@dataclass
class Tracker:
    """One tracker replica."""

    name: str
    port: int
    process: Process


@dataclass
class LocalCluster:
    """A running cluster; a context manager that ends everything and removes its directory, even if we are killed."""

    directory: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="stafett-")))
    trackers: list[Tracker] = field(default_factory=list)
    hosts: list[Host] = field(default_factory=list)
    address: str = LOOPBACK
    """Where the trackers listen."""
    redis_port: int = 0
    redis: Process | None = None
    _sweeper: subprocess.Popen[bytes] | None = None

    def __post_init__(self) -> None:
        self.processes = Processes(self.directory / "logs")

    @property
    def tracker_target(self) -> str:
        """gRPC target of all trackers."""
        return "ipv4:" + ",".join(f"{self.address}:{tracker.port}" for tracker in self.trackers)

    def start_redis(self) -> None:
        """Start (again) the Redis server, on the same port as before."""
        self.redis_port = self.redis_port or free_port()
        self.redis = start_redis(self.processes, self.redis_port, self.directory / "redis")

    def start_tracker(self, settings: Mapping[str, object] | None = None, *, port: int = 0) -> Tracker:
        """Start one more tracker replica, or one again on its old port."""
        port = port or free_port()
        name = f"tracker-{port}"
        own = {"listen_host": self.address, "listen_port": port, "redis_url": f"redis://127.0.0.1:{self.redis_port}/0"}
        merged = {**own, **(settings or {})}
        process = start_service(self.processes, "tracker", name, merged, port=port, place=Place(self.address))
        tracker = Tracker(name, port, process)
        self.trackers = [old for old in self.trackers if old.port != port] + [tracker]
        self._wait_serving(process, port, self.address)
        return tracker

    def add_host(
        self,
        name: str,
        *,
        zone: str = "",
        rack: str = "",
        containerd: bool = False,
        cri: bool = False,
        place: Place = HERE,
    ) -> Host:
        """Lay out a host; with `containerd`, start its private containerd."""
        directory = self.directory / name
        directory.mkdir()
        host = Host(name, zone, rack, directory, free_port(), free_port(), free_port(), place)
        if containerd:
            host.containerd = Containerd(directory, cri=cri, place=place)
            host.containerd.start(self.processes, f"containerd-{name}")
        else:
            ensure_layout(host.content_root)
        self.hosts.append(host)
        return host

    def start_node(self, host: Host, settings: Mapping[str, object] | None = None) -> Process:
        """Start (again) the host's node."""
        own: dict[str, object] = {
            "node_id": host.name,
            "listen_host": host.place.address,
            "listen_port": host.node_port,
            "tracker": self.tracker_target,
            "zone": host.zone,
            "rack": host.rack,
            "store": "containerd" if host.containerd else "oci-layout",
            "content_root": host.content_root,
        }
        if host.containerd:
            own["containerd_socket"] = host.containerd.socket
        merged = {**own, **(settings or {})}
        host.node = start_service(
            self.processes, "node", f"node-{host.name}", merged, port=host.node_port, place=host.place
        )
        self._wait_serving(host.node, host.node_port, host.place.address)
        return host.node

    def start_gateway(
        self,
        host: Host,
        settings: Mapping[str, object] | None = None,
        *,
        environment: Mapping[str, str] | None = None,
    ) -> Process:
        """Start (again) the host's gateway."""
        own = {
            "node_id": host.name,
            "node_target": f"{host.place.address}:{host.node_port}",
            "listen_port": host.gateway_port,
            "tag_port": host.tag_port,
            "tracker": self.tracker_target,
            "zone": host.zone,
            "rack": host.rack,
            "content_root": host.content_root,
        }
        host.gateway = start_service(
            self.processes,
            "gateway",
            f"gateway-{host.name}",
            {**own, **(settings or {})},
            port=host.gateway_port,
            place=host.place,
            environment=environment,
        )
        return host.gateway

    @staticmethod
    def _wait_serving(process: Process, port: int, address: str) -> None:
        """Raises StartupFailed: if it ends before, as when somebody else has its port."""
        wait_until(lambda: not process.alive or is_serving(port, address=address), f"{process.name} serving")
        if not process.alive:
            raise StartupFailed(f"{process.name} has ended: {process.log_tail(1)}")

    def __enter__(self) -> LocalCluster:
        self._sweeper = subprocess.Popen(
            [sys.executable, "-m", "stafett.cli.local_cluster.sweeper", str(self.directory)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        return self

    def __exit__(self, *exc: object) -> None:
        self.processes.__exit__()
        for host in self.hosts:
            if host.containerd:
                host.containerd.unmount()
        shutil.rmtree(self.directory, ignore_errors=True)
        if self._sweeper:
            self._sweeper.communicate(b"all is clean")
