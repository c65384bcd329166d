"""Hosts that start an image at the same moment ask upstream once, and all of them get it."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest

from stafett.cli.local_cluster.cluster import Host
from tests.e2e.bed import PLATFORM, Bed, digests_of

pytestmark = [
    pytest.mark.needs_root,
    pytest.mark.needs_program("containerd"),
    pytest.mark.needs_program("docker-registry"),
]

HOSTS = 6
SHAPES = {
    "one large layer": [40_000_000],
    "middling layers": [2_000_000] * 12,
    "many small layers": [30_000] * 60,
}


def pull_together(bed: Bed, hosts: list[Host], name: str) -> None:
    """Pull at once; every pull must succeed."""
    with ThreadPoolExecutor(len(hosts)) as pool:
        list(pool.map(lambda host: bed.pull(host, name), hosts))


def upstream_gets(bed: Bed, repository: str) -> Counter[str]:
    """How often each piece of content was sent by upstream."""
    return Counter(
        access.path.rpartition("/")[2] for access in bed.upstream.bodies(repository) if access.method == "GET"
    )


@pytest.mark.parametrize("shape", SHAPES)
def test_hosts_that_pull_together_ask_upstream_once(own_bed: Bed, shape: str) -> None:
    own_bed.start(HOSTS)
    image = own_bed.push_image("lib/together", {PLATFORM: SHAPES[shape]})
    pull_together(own_bed, own_bed.hosts, image.name)
    for host in own_bed.hosts:
        own_bed.assert_complete(host, image)
    gets = upstream_gets(own_bed, "lib/together")
    assert {digest: gets[str(digest)] for digest in digests_of(image)} == dict.fromkeys(digests_of(image), 1)
