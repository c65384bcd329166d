"""Hosts behind links of a given speed, each with its own containerd, node and gateway, that pull at the same moment.

    with relay_bed(directory, hosts=6, rate_mbit=50) as bed:
        image = bed.push("lib/app", [25_000_000] * 4)
        pulls = bed.pull_all(image)               # seconds for each host, by name
        bed.upstream_copies(image), bed.cross_zone_copies(image)

Links are limited both ways, that of the upstream registry too, so that they are what pulls wait for.
"""

from __future__ import annotations

import contextlib
import http.client
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from stafett.cli.local_cluster.cluster import Host, LocalCluster
from stafett.cli.local_cluster.images import MadeImage
from stafett.cli.local_cluster.processes import Place, Process
from stafett.common.digest import Digest
from tests.chaos.net import Network, connect
from tests.e2e.bed import PLATFORM, Bed, digests_of
from tests.e2e.upstream import Upstream

MBIT = 125_000.0
PULL_SECONDS = 300.0


@dataclass(frozen=True)
class Pull:
    """How one host's pull went; `seconds` from its own start, which is told by the monotonic clock."""

    host: str
    seconds: float
    error: str = ""
    started_at: float = 0.0


@dataclass
class RelayBed:
    """What a test or benchmark needs at hand."""

    bed: Bed
    network: Network
    rate_mbit: float
    follow: bool = True
    _cross_zone_before: float = field(default=0.0)
    _cross_zone_of_killed: float = field(default=0.0)

    @property
    def hosts(self) -> list[Host]:
        return self.bed.hosts

    def push(self, repository: str, layers: Sequence[int], *, seed: int = 0) -> MadeImage:
        """Put an image of incompressible layers into the registry, unlimited; links are limited from then on."""
        image = self.bed.push_image(repository, {PLATFORM: list(layers)}, seed=seed)
        for place in (host.place for host in self.hosts):
            self.network.limit(place, self.rate_mbit * MBIT)
        self.network.limit(self.bed.upstream.place, self.rate_mbit * MBIT)
        self._cross_zone_before = self._cross_zone_bytes()
        return image

    def pull(self, host: Host, image: MadeImage) -> Pull:
        """Fetch all content of an image into one host's containerd."""
        assert host.containerd is not None
        started_at = time.monotonic()
        fetch = ("content", "fetch", "--hosts-dir", str(host.containerd.hosts_dir), "--platform", PLATFORM, image.name)
        done = host.containerd.ctr(*fetch, timeout_seconds=PULL_SECONDS)
        error = done.stderr[-500:] or "failed" if done.returncode else ""
        return Pull(host.name, time.monotonic() - started_at, error, started_at)

    def pull_all(
        self, image: MadeImage, hosts: Sequence[Host] | None = None, delays: Mapping[str, float] | None = None
    ) -> dict[str, Pull]:
        """Pull on all hosts at once, or each after its delay in seconds."""
        chosen = self.hosts if hosts is None else hosts

        def start(host: Host) -> Pull:
            time.sleep((delays or {}).get(host.name, 0.0))
            return self.pull(host, image)

        with ThreadPoolExecutor(len(chosen)) as pool:
            return {pull.host: pull for pull in pool.map(start, chosen)}

    def upstream_gets(self, image: MadeImage) -> Counter[Digest]:
        """How often upstream sent (a part of) each piece of content."""
        repository = image.name.partition("/")[2].rpartition(":")[0]
        sent = Counter(access.path.rpartition("/")[2] for access in self.bed.upstream.bodies(repository))
        return Counter({digest: sent[str(digest)] for digest in digests_of(image)})

    def upstream_copies(self, image: MadeImage) -> float:
        """Bytes that upstream sent, by the size of the image."""
        repository = image.name.partition("/")[2].rpartition(":")[0]
        sent = sum(access.size_bytes for access in self.bed.upstream.bodies(repository))
        return sent / image.pulled_bytes(PLATFORM)

    def cross_zone_copies(self, image: MadeImage) -> float:
        """Bytes that gateways got from another zone since the push, by the size of the image."""
        return (self._cross_zone_bytes() - self._cross_zone_before) / image.pulled_bytes(PLATFORM)

    def parts(self, host: Host) -> list[Process]:
        """All processes of a host."""
        assert host.containerd is not None
        return [part for part in (host.containerd.process, host.node, host.gateway) if part is not None]

    def kill(self, host: Host) -> None:
        """Kill all parts of a host; what its gateway has counted until now still counts."""
        self._cross_zone_of_killed += self.gateway_bytes(host)["peer_region"]
        for part in self.parts(host):
            part.kill()

    def gateway_bytes(self, host: Host) -> Counter[str]:
        """Bytes that a host's gateway has sent, by source."""
        return self._gateway_counts(host, "stafett_gateway_bytes_total", "source")

    def failovers(self, host: Host) -> Counter[str]:
        """How often a host's gateway has left a holder, by reason."""
        return self._gateway_counts(host, "stafett_gateway_failovers_total", "reason")

    def _gateway_counts(self, host: Host, series: str, label: str) -> Counter[str]:
        if host.gateway is None or not host.gateway.alive:
            return Counter()
        connection = http.client.HTTPConnection("127.0.0.1", host.gateway_port)
        connection.sock = connect(host.place, host.gateway_port)
        try:
            connection.request("GET", "/metrics")
            text = connection.getresponse().read().decode()
        finally:
            connection.close()
        return Counter(
            {
                sample.labels[label]: round(sample.value)
                for family in text_string_to_metric_families(text)
                for sample in family.samples
                if sample.name == series
            }
        )

    def _cross_zone_bytes(self) -> float:
        return self._cross_zone_of_killed + sum(self.gateway_bytes(host)["peer_region"] for host in self.hosts)


@contextlib.contextmanager
def relay_bed(
    directory: Path, *, hosts: int, rate_mbit: float = 50.0, follow: bool = True, zones: str = "ab"
) -> Iterator[RelayBed]:
    """Start everything; hosts h1, h2, ... stand in the zones by turns. All of it is gone afterwards."""
    with Network.open() as network, LocalCluster(address=network.address) as cluster:
        place = network.add()
        upstream = Upstream(cluster.directory / "upstream", address=place.address, place=place)
        bed = Bed(cluster, upstream, directory)
        _start(bed, network, hosts, zones, follow=follow)
        yield RelayBed(bed, network, rate_mbit, follow)


def _start(bed: Bed, network: Network, hosts: int, zones: str, *, follow: bool) -> None:
    bed.upstream.start(bed.cluster.processes)
    bed.cluster.start_redis()
    bed.cluster.start_tracker()
    bed.cluster.start_tracker()
    for number in range(hosts):
        place: Place = network.add()
        zone = zones[number % len(zones)]
        host = bed.cluster.add_host(f"h{number + 1}", zone=zone, containerd=True, place=place)
        bed.write_hosts(host)
        bed.cluster.start_node(host)
        bed.cluster.start_gateway(host, {"follow": follow})
    bed.wait_ready_nodes(hosts)
