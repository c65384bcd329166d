"""The demo's cluster: registry, Redis, two trackers, four hosts in two zones, all links capped."""

from __future__ import annotations

import json
import sys
import urllib.request
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from stafett.api.v1 import tracker_pb2, tracker_pb2_grpc
from stafett.cli.local_cluster.cluster import Host, LocalCluster
from stafett.cli.local_cluster.images import MadeImage, make_image
from stafett.cli.local_cluster.processes import accepts_connections, free_port, wait_until
from stafett.cli.pull import own_platform
from stafett.common import wire
from stafett.common.cluster import Node
from stafett.common.grpc_transport import blocking_tracker_channel

MIB = 1024 * 1024
LINK_BYTES_PER_SECOND = 20_000_000
REGISTRY = "registry.demo"
IMAGE = f"{REGISTRY}/shop/frontend:1.0"
LAYERS = (60 * MIB, 48 * MIB, 40 * MIB, 24 * MIB, 12 * MIB, 6 * MIB)
OTHER_PLATFORM_LAYERS = (2 * MIB, 1 * MIB)
HOSTS = (("host-1", "zone-a"), ("host-2", "zone-b"), ("host-3", "zone-a"), ("host-4", "zone-b"))
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@dataclass
class Stage:
    """Everything that the acts play on."""

    cluster: LocalCluster
    use_containerd: bool
    platform: str = field(default_factory=own_platform)
    upstream_port: int = field(default_factory=free_port)

    def __post_init__(self) -> None:
        self.image: MadeImage = self._make_image()

    @property
    def upstream_url(self) -> str:
        return f"http://127.0.0.1:{self.upstream_port}"

    @property
    def image_bytes(self) -> int:
        """Bytes that one host's pull moves."""
        return self.image.pulled_bytes(self.platform)

    def start(self) -> None:
        """Start everything; hosts come up side by side."""
        command = [sys.executable, "-m", "stafett.cli.demo.upstream", str(self._layout)]
        command += [str(self.upstream_port), str(LINK_BYTES_PER_SECOND)]
        self.cluster.processes.start("upstream", command, ready=lambda: accepts_connections(self.upstream_port))
        self.cluster.start_redis()
        self.cluster.start_tracker()
        self.cluster.start_tracker()
        hosts = [self.cluster.add_host(name, zone=zone, containerd=self.use_containerd) for name, zone in HOSTS]
        with ThreadPoolExecutor(len(hosts)) as pool:
            list(pool.map(self._start_host, hosts))
        wait_until(lambda: len(self.nodes()) == len(hosts), "all nodes registered")

    def nodes(self) -> dict[str, Node]:
        """Ask the trackers for the nodes."""
        with blocking_tracker_channel(self.cluster.tracker_target, None) as channel:
            stub = tracker_pb2_grpc.TrackerServiceStub(channel)
            answer = stub.ListNodes(tracker_pb2.ListNodesRequest(), timeout=5)
        return {message.id: wire.node_from_wire(message) for message in answer.nodes}

    def upstream_bytes(self) -> int:
        """Content bytes that the registry has served so far."""
        with _OPENER.open(f"{self.upstream_url}/stats", timeout=5) as answer:
            return int(json.load(answer)["served_bytes"])

    def gateway_bytes(self, host: Host) -> Counter[str]:
        """Content bytes that a host's gateway has sent so far, by source."""
        with _OPENER.open(f"{host.gateway_url}/metrics", timeout=5) as answer:
            text = answer.read().decode()
        samples = (s for family in text_string_to_metric_families(text) for s in family.samples)
        return Counter({s.labels["source"]: int(s.value) for s in samples if s.name == "stafett_gateway_bytes_total"})

    @property
    def _layout(self) -> Path:
        return self.cluster.directory / "upstream"

    def _make_image(self) -> MadeImage:
        other = "linux/arm64" if self.platform != "linux/arm64" else "linux/amd64"
        return make_image(self._layout, IMAGE, {self.platform: LAYERS, other: OTHER_PLATFORM_LAYERS})

    def _start_host(self, host: Host) -> None:
        if host.containerd:
            host.containerd.write_hosts(REGISTRY, host.gateway_url, self.upstream_url, host.tag_url)
        self.cluster.start_node(host, {"upload_limit_bytes_per_second": LINK_BYTES_PER_SECOND})
        self.cluster.start_gateway(host, {"upstream_urls": json.dumps({REGISTRY: self.upstream_url})})


@contextmanager
def set_stage(*, use_containerd: bool) -> Iterator[Stage]:
    """Make the cluster, and take everything away again."""
    with LocalCluster() as cluster:
        stage = Stage(cluster, use_containerd)
        stage.start()
        yield stage
