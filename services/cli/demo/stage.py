"""The demo's cluster: a registry, four hosts in two zones, and then Stafett; all links are capped."""

from __future__ import annotations

import json
import sys
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import redis
from prometheus_client.parser import text_string_to_metric_families

from stafett.api.v1 import tracker_pb2, tracker_pb2_grpc
from stafett.cli.host_platform import own_platform
from stafett.cli.local_cluster.cluster import Host, LocalCluster
from stafett.cli.local_cluster.images import MadeImage, make_image
from stafett.cli.local_cluster.processes import Process, accepts_connections, free_port, wait_until
from stafett.common import wire
from stafett.common.blob_files import blob_path
from stafett.common.cluster import Node, NodeState
from stafett.common.digest import Digest
from stafett.common.grpc_transport import blocking_tracker_channel
from stafett.common.oci_layout import remove_everything

MIB = 1024 * 1024
LINK_BYTES_PER_SECOND = 20_000_000
REGISTRY = "registry.demo"
IMAGE = f"{REGISTRY}/shop/frontend:1.0"
LAYERS = (24 * MIB, 18 * MIB, 12 * MIB, 8 * MIB, 4 * MIB, 2 * MIB)
QUICK_LAYERS = tuple(size // 3 for size in LAYERS)
OTHER_PLATFORM_LAYERS = (2 * MIB, 1 * MIB)
HOSTS = (("host-1", "zone-a"), ("host-2", "zone-b"), ("host-3", "zone-a"), ("host-4", "zone-b"))
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@dataclass
class Stage:
    """Everything that the acts play on."""

    cluster: LocalCluster
    use_containerd: bool
    quick: bool = False
    """With an image of a third of the size."""
    platform: str = field(default_factory=own_platform)
    upstream_port: int = field(default_factory=free_port)

    def __post_init__(self) -> None:
        other = "linux/arm64" if self.platform != "linux/arm64" else "linux/amd64"
        layers = {self.platform: QUICK_LAYERS if self.quick else LAYERS, other: OTHER_PLATFORM_LAYERS}
        self.image: MadeImage = make_image(self._layout, IMAGE, layers)
        self._upstream: Process | None = None

    @property
    def hosts(self) -> list[Host]:
        return self.cluster.hosts

    @property
    def upstream_url(self) -> str:
        return f"http://127.0.0.1:{self.upstream_port}"

    @property
    def digests(self) -> list[Digest]:
        """All that one host's pull has to bring."""
        image = self.image
        return [part.digest for part in (image.index, image.manifests[self.platform], *image.blobs[self.platform])]

    @property
    def image_bytes(self) -> int:
        """Bytes that one host's pull moves."""
        return self.image.pulled_bytes(self.platform)

    def start_upstream(self) -> None:
        """Start (again) the registry."""
        command = [sys.executable, "-m", "stafett.cli.demo.upstream", str(self._layout)]
        command += [str(self.upstream_port), str(LINK_BYTES_PER_SECOND)]
        ready = accepts_connections
        self._upstream = self.cluster.processes.start("upstream", command, ready=lambda: ready(self.upstream_port))

    def stop_upstream(self) -> None:
        """Take the registry away."""
        if self._upstream is not None:
            self._upstream.stop()

    def install(self) -> None:
        """Start Redis, two trackers, and a node and a gateway on each host, side by side."""
        self.cluster.start_redis()
        self.cluster.start_tracker()
        self.cluster.start_tracker()
        self._on_hosts(self._start_services)
        self.wait_ready()

    def wait_ready(self) -> None:
        """Wait until all nodes are in service, with what they hold announced."""

        def ready() -> bool:
            nodes = self.nodes()
            return all(self._is_announced(host, nodes.get(host.name)) for host in self.hosts)

        wait_until(ready, "all nodes in service")

    def _is_announced(self, host: Host, node: Node | None) -> bool:
        held = sum(blob_path(host.content_root, digest).exists() for digest in self.digests)
        return node is not None and node.state is NodeState.READY and node.blob_count == held

    def start_node(self, host: Host) -> None:
        """Start (again) a host's node."""
        self.cluster.start_node(host, {"upload_limit_bytes_per_second": LINK_BYTES_PER_SECOND})

    def forget(self, *hosts: Host) -> None:
        """Remove the image from hosts, as if they had never had it."""
        self._on_hosts(self._forget, *hosts)

    def flush(self) -> None:
        """Make Redis lose all of its data."""
        with redis.Redis(port=self.cluster.redis_port) as client:
            client.flushall()

    def nodes(self) -> dict[str, Node]:
        """Ask the trackers for the nodes."""
        with blocking_tracker_channel(self.cluster.tracker_target, None) as channel:
            stub = tracker_pb2_grpc.TrackerServiceStub(channel)
            answer = stub.ListNodes(tracker_pb2.ListNodesRequest(), timeout=5)
        return {message.id: wire.node_from_wire(message) for message in answer.nodes}

    def upstream_bytes(self) -> int:
        """Content bytes that the registry has served since it was started."""
        with _OPENER.open(f"{self.upstream_url}/stats", timeout=5) as answer:
            return int(json.load(answer)["served_bytes"])

    def gateway_bytes(self, host: Host) -> Counter[str]:
        """Content bytes that a host's gateway has sent so far, by source; nothing before it is installed."""
        if host.gateway is None:
            return Counter()
        with _OPENER.open(f"{host.gateway_url}/metrics", timeout=5) as answer:
            text = answer.read().decode()
        samples = (s for family in text_string_to_metric_families(text) for s in family.samples)
        return Counter({s.labels["source"]: int(s.value) for s in samples if s.name == "stafett_gateway_bytes_total"})

    @property
    def _layout(self) -> Path:
        return self.cluster.directory / "upstream"

    def _on_hosts(self, work: Callable[[Host], None], *hosts: Host) -> None:
        with ThreadPoolExecutor(len(HOSTS)) as pool:
            list(pool.map(work, hosts or self.hosts))

    def _start_services(self, host: Host) -> None:
        if host.containerd:
            host.containerd.write_hosts(REGISTRY, host.gateway_url, self.upstream_url, host.tag_url)
        self.start_node(host)
        self.cluster.start_gateway(host, {"upstream_urls": json.dumps({REGISTRY: self.upstream_url})})

    def _forget(self, host: Host) -> None:
        if host.containerd:
            host.containerd.ctr("images", "rm", "--sync", IMAGE)
        else:
            remove_everything(host.content_root)
        wait_until(lambda: not any(blob_path(host.content_root, d).exists() for d in self.digests), "an empty store")


@contextmanager
def set_stage(*, use_containerd: bool, quick: bool) -> Iterator[Stage]:
    """Make registry and hosts, without Stafett, and take everything away again."""
    with LocalCluster() as cluster:
        stage = Stage(cluster, use_containerd, quick)
        stage.start_upstream()
        for name, zone in HOSTS:
            cluster.add_host(name, zone=zone, containerd=use_containerd)
        yield stage
