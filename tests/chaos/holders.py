"""Three hosts that hold blobs and one that asks, without containerds: the near one in its rack, two in another zone."""

from __future__ import annotations

import random
import signal
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from stafett.cli.local_cluster.cluster import Host, LocalCluster
from stafett.cli.local_cluster.processes import wait_until
from stafett.common.blob_files import blob_path
from stafett.common.digest import Digest
from tests.e2e.bed import Bed
from tests.e2e.upstream import Upstream

UPLOAD_BYTES_PER_SECOND = 8_000_000
"""Slow enough that a pull lasts long enough to be broken."""
READY = 1


@dataclass
class Holders:
    """The hosts. Each row restores what it broke, by `restore`."""

    bed: Bed
    asking: Host
    near: Host
    far: tuple[Host, Host]

    @property
    def all(self) -> tuple[Host, ...]:
        return (self.near, *self.far)

    def named(self, name: str) -> Host:
        """The host with this name."""
        return next(host for host in self.bed.hosts if host.name == name)

    def give(self, size_bytes: int, seed: str, *, to: tuple[Host, ...] = ()) -> Digest:
        """Put a blob of random bytes into the stores of all holders, or of some, and wait until it is known."""
        content = random.Random(seed).randbytes(size_bytes)
        digest = Digest.of(content)
        for host in to or self.all:
            path = blob_path(host.content_root, digest)
            incoming = host.content_root / "incoming"
            incoming.write_bytes(content)
            incoming.rename(path)
        for host in to or self.all:
            self.bed.wait_held(host, [digest])
        return digest

    def start_node(self, host: Host, settings: Mapping[str, object] | None = None) -> None:
        """Start (again) a host's node, with a limited upload."""
        limit = {"upload_limit_bytes_per_second": UPLOAD_BYTES_PER_SECOND}
        self.bed.cluster.start_node(host, {**limit, **(settings or {})})

    def restore(self) -> None:
        """Start what was killed, and wake what was frozen."""
        nodes = {host.name: host.node for host in (*self.all, self.asking) if host.node}
        for node in nodes.values():
            node.signal(signal.SIGCONT)
        with ThreadPoolExecutor(len(nodes)) as starting:
            list(starting.map(self.start_node, [self.named(name) for name, node in nodes.items() if not node.alive]))
        self.wait_ready()

    def wait_ready(self) -> None:
        """Wait until everybody's node is READY."""
        hosts = (*self.all, self.asking)
        wait_until(lambda: all(self.bed.node(host).state == READY for host in hosts), "all nodes READY")


@contextmanager
def holders(directory: Path) -> Iterator[Holders]:
    """Run them until left."""
    with LocalCluster() as cluster:
        bed = Bed(cluster, Upstream(directory / "unused"), directory)
        cluster.start_redis()
        cluster.start_tracker()
        cluster.start_tracker()
        asking = cluster.add_host("asking", zone="a", rack="a1")
        near = cluster.add_host("near", zone="a", rack="a1")
        far = (cluster.add_host("far1", zone="b"), cluster.add_host("far2", zone="b"))
        started = Holders(bed, asking, near, far)
        for host in (asking, *started.all):
            started.start_node(host)
        cluster.start_gateway(asking)
        started.wait_ready()
        yield started
