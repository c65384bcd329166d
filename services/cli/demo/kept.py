"""What a user can do with the demo's cluster while it is kept: commands to be copied as they are."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from stafett.cli.demo.stage import IMAGE, REGISTRY, Stage
from stafett.cli.local_cluster.cluster import Host


def how_to_use(stage: Stage) -> Iterator[str]:
    """Give the lines to print; those that are commands are indented."""
    host, trackers = stage.hosts[0], f"--tracker {stage.cluster.tracker_target}"
    mirror = host.gateway_url.removeprefix("http://")
    stafett = _stafett()
    yield "The cluster runs on. Ctrl-C ends it and removes everything. In another terminal:"
    yield "who is there, and who holds what:"
    yield f"  {stafett} nodes {trackers}"
    yield f"  {stafett} images {trackers}"
    yield f"  {stafett} explain {IMAGE} --from {host.name} {trackers}"
    yield f"pull through the gateway of {host.name}:"
    yield f"  {stafett} pull {IMAGE} --via {host.gateway_url} --via {stage.upstream_url} --to pulled"
    yield "the same with skopeo, by digest, as tags are for upstream to tell:"
    named = f"{mirror}/{IMAGE.rpartition(':')[0]}@{stage.image.index.digest}"
    yield f"  skopeo copy --src-tls-verify=false docker://{named} dir:copied"
    yield from _own_containerd(stage, host, stafett)
    for each in stage.hosts:
        if each.containerd:
            pull = f"images pull --hosts-dir {each.containerd.hosts_dir} --platform {stage.platform} {IMAGE}"
            yield f"the containerd of {each.name}:"
            yield f"  ctr --address {each.containerd.socket} {pull}"
    yield "in a browser:"
    yield f"  {host.gateway_url}/metrics"
    yield f"  {host.gateway_url}/readyz"


def _own_containerd(stage: Stage, host: Host, stafett: str) -> Iterator[str]:
    """Nothing of the user's own configuration is touched: the mirror files are in the demo's directory."""
    hosts_dir = stage.cluster.directory / "certs.d"
    yield "your own containerd, as root; its configuration stays as it is, the mirror files go when the demo ends:"
    names = f"--registry {REGISTRY} --upstream {REGISTRY}={stage.upstream_url}"
    ports = f"--gateway {host.gateway_url} --tags {host.tag_url}"
    yield f"  {stafett} configure --hosts-dir {hosts_dir} {names} {ports}"
    yield f"  ctr images pull --hosts-dir {hosts_dir} --platform {stage.platform} {IMAGE}"
    yield f"  ctr images rm {IMAGE}"


def _stafett() -> str:
    """The command by its path: under make the user's own shell does not find it."""
    path = Path(sys.executable).with_name("stafett")
    return str(path) if path.exists() else "stafett"
