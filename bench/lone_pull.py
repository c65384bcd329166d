"""Cold pulls by containerd that no peer can help with: through Stafett, and the same without it.

The promise is that the first costs no more than the second. Two private containerds: one asks its gateway first, which
answers 404, the other knows only the upstream registry and has no node beside it.
"""

from __future__ import annotations

import shutil
import time
from statistics import median

from stafett.cli.local_cluster.cluster import Host, LocalCluster
from stafett.cli.local_cluster.containerd import Containerd, containerd_available
from stafett.cli.local_cluster.images import make_image
from stafett.common.errors import StartupFailed
from tests.e2e.upstream import Upstream

PLATFORM = "linux/amd64"
_LAYER_BYTES = 20_000_000
_LAYERS = 5
_WITHDRAWN_SECONDS = 1.0


def measure_lone_pulls(cluster: LocalCluster, repeats: int) -> float | None:
    """Return the time through Stafett divided by the time without; None where it cannot be measured."""
    if not containerd_available() or shutil.which("docker-registry") is None:
        print("lone cold pull: not measured, needs root, containerd and docker-registry")
        return None
    upstream = Upstream(cluster.directory / "upstream")
    upstream.start(cluster.processes)
    name = f"{upstream.registry}/bench/lone:1"
    layout = cluster.directory / "lone-layout"
    made = make_image(layout, name, {PLATFORM: [_LAYER_BYTES] * _LAYERS}, seed=1)
    upstream.push(layout, name, made.index)
    through = _host_behind_gateway(cluster, upstream)
    without = cluster.add_host("plain", containerd=True).containerd
    assert through.containerd is not None
    assert without is not None
    write_plain_hosts(without, upstream)
    seconds = _alternate((through.containerd, without), name, repeats)
    print(f"lone cold pull of {_LAYERS * _LAYER_BYTES / 1e6:.0f} MB: through Stafett {_listed(seconds[0])}")
    print(f"  without {_listed(seconds[1])}")
    return median(seconds[0]) / median(seconds[1])


def _alternate(containerds: tuple[Containerd, Containerd], name: str, repeats: int) -> tuple[list[float], list[float]]:
    """Pull on each in turn, who begins changing, after one unmeasured pull each."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for number in range(repeats + 1):
        for index in (0, 1) if number % 2 else (1, 0):
            took = _cold_pull(containerds[index], name)
            if number:
                seconds[index].append(took)
    return seconds


def _cold_pull(containerd: Containerd, name: str) -> float:
    started = time.perf_counter()
    pulled = containerd.pull(name, "--platform", PLATFORM)
    seconds = time.perf_counter() - started
    if pulled.returncode != 0:
        raise StartupFailed(f"{name} cannot be pulled: {pulled.stderr}")
    containerd.ctr("images", "rm", "--sync", name)
    if left := containerd.ctr("content", "ls", "-q").stdout.split():
        raise StartupFailed(f"{len(left)} blobs are left after the removal of {name}: the next pull would not be cold")
    time.sleep(_WITHDRAWN_SECONDS)
    return seconds


def _host_behind_gateway(cluster: LocalCluster, upstream: Upstream) -> Host:
    host = cluster.add_host("lone", zone="a", rack="a3", containerd=True)
    assert host.containerd is not None
    host.containerd.write_hosts(upstream.registry, host.gateway_url, upstream.url, host.tag_url)
    cluster.start_node(host)
    cluster.start_gateway(host, {"upstream_urls": f'{{"{upstream.registry}": "{upstream.url}"}}'})
    return host


def write_plain_hosts(containerd: Containerd, upstream: Upstream) -> None:
    """Have a containerd pull from upstream without Stafett."""
    folder = containerd.hosts_dir / upstream.registry
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "hosts.toml").write_text(f'server = "{upstream.url}"\n[host."{upstream.url}"]\n')


def _listed(seconds: list[float]) -> str:
    return f"median {median(seconds):.3f} s of {', '.join(f'{each:.2f}' for each in sorted(seconds))}"
