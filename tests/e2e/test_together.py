"""Hosts that start an image at the same moment ask upstream once, and all of them get it."""

from __future__ import annotations

import subprocess
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import httpx2
import pytest

from stafett.cli.local_cluster.cluster import Host
from stafett.cli.local_cluster.parts import run
from stafett.cli.local_cluster.processes import wait_until
from stafett.common.oci import Descriptor
from tests.e2e.bed import PLATFORM, Bed, digests_of

pytestmark = [
    pytest.mark.needs_root,
    pytest.mark.needs_program("containerd"),
    pytest.mark.needs_program("docker-registry"),
    pytest.mark.needs_program("skopeo"),
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


def sent_upstream(host: Host) -> float:
    """How many requests for blobs a host's gateway has answered with a claim, by its metrics."""
    text = httpx2.get(f"{host.gateway_url}/metrics", trust_env=False).text
    name = 'stafett_gateway_requests_total{kind="blobs",outcome="miss",source="upstream_claim"} '
    [value] = [line.removeprefix(name) for line in text.splitlines() if line.startswith(name)]
    return float(value)


def leave_download(bed: Bed, host: Host, layer: Descriptor) -> None:
    """Leave the beginning of a download, of zeros, in a host's store, whose client has been killed."""
    assert host.containerd is not None
    reference = f"layer-{layer.digest}"
    command = host.containerd.ctr_command("content", "ingest", "--expected-size", str(layer.size_bytes), reference)
    with subprocess.Popen(command, stdin=subprocess.PIPE) as writer:
        assert writer.stdin is not None
        writer.stdin.write(bytes(3_000_000))
        writer.stdin.flush()
        wait_until(lambda: reference in bed.ctr(host, "content", "active"), "the download is there")
        writer.kill()


@pytest.mark.parametrize("shape", SHAPES)
def test_hosts_that_pull_together_ask_upstream_once(own_bed: Bed, shape: str) -> None:
    own_bed.start(HOSTS)
    image = own_bed.push_image("lib/together", {PLATFORM: SHAPES[shape]})
    pull_together(own_bed, own_bed.hosts, image.name)
    for host in own_bed.hosts:
        own_bed.assert_complete(host, image)
    gets = upstream_gets(own_bed, "lib/together")
    assert {digest: gets[str(digest)] for digest in digests_of(image)} == dict.fromkeys(digests_of(image), 1)
    assert sum(sent_upstream(host) for host in own_bed.hosts) >= len(image.blobs[PLATFORM])


def test_a_client_without_a_download_in_the_store_gets_no_claim(bed: Bed) -> None:
    image = bed.push_image("lib/skopeo-first")
    host = bed.hosts[0]
    source = f"docker://{host.gateway_url.removeprefix('http://')}/{image.name.rpartition(':')[0]}@{image.index.digest}"
    asked = run(["skopeo", "inspect", "--raw", "--tls-verify=false", source], 30)
    assert asked.returncode != 0
    pull_together(bed, bed.hosts, image.name)
    assert max(upstream_gets(bed, "lib/skopeo-first").values()) == 1


def test_a_dead_download_that_a_killed_client_left_holds_nobody_up(bed: Bed) -> None:
    image = bed.push_image("lib/dead", {PLATFORM: [30_000_000]})
    layer = image.blobs[PLATFORM][1]
    leave_download(bed, bed.hosts[0], layer)
    pull_together(bed, bed.hosts[1:], image.name)
    for other in bed.hosts[1:]:
        bed.assert_complete(other, image)
    assert upstream_gets(bed, "lib/dead")[str(layer.digest)] == 1


def test_a_download_that_was_wrong_already_is_found_out_and_the_next_attempt_succeeds(bed: Bed) -> None:
    image = bed.push_image("lib/wrong-prefix", {PLATFORM: [30_000_000]}, seed=1)
    holder, host = bed.hosts[:2]
    assert host.containerd is not None
    bed.pull(holder, image.name)
    bed.wait_held(holder, digests_of(image))
    leave_download(bed, host, image.blobs[PLATFORM][1])
    first = host.containerd.pull(image.name, "--platform", PLATFORM)
    assert first.returncode != 0
    wait_until(lambda: not bed.ctr(host, "content", "active").count("layer-"), "the wrong download is dropped")
    bed.pull(host, image.name)
    bed.assert_complete(host, image)


def test_a_runtime_gets_parallel_ranges_of_a_blob_that_somebody_has_whole(bed: Bed) -> None:
    image = bed.push_image("lib/ranges", {PLATFORM: [5_000_000]}, seed=2)
    holder, host = bed.hosts[:2]
    bed.pull(holder, image.name)
    layer = image.blobs[PLATFORM][1]
    bed.wait_held(holder, [layer.digest])
    url = f"{host.gateway_url}/v2/lib/ranges/blobs/{layer.digest}?ns=reg.test"
    runtime = {"User-Agent": "containerd/2.1.0"}

    def ask(bytes_: str) -> tuple[int, int]:
        answer = httpx2.get(url, headers={**runtime, "Range": f"bytes={bytes_}"}, trust_env=False)
        return answer.status_code, len(answer.content)

    assert ask("0-") == (206, layer.size_bytes), "nothing is being received"
    leave_download(bed, host, layer)
    assert ask("0-") == (206, layer.size_bytes), "somebody has all of it"
    assert ask("4000000-") == (206, layer.size_bytes - 4_000_000)


def test_two_namespaces_of_one_host_share_a_download(bed: Bed) -> None:
    image = bed.push_image("lib/namespaces", {PLATFORM: [60_000_000]})
    host = bed.hosts[0]
    assert host.containerd is not None
    fetch = ("content", "fetch", "--hosts-dir", str(host.containerd.hosts_dir), "--platform", PLATFORM, image.name)
    with ThreadPoolExecutor(2) as pool:
        done = list(pool.map(lambda name: host.containerd.ctr("--namespace", name, *fetch), ("one", "two")))  # type: ignore[union-attr]
    assert [each.returncode for each in done] == [0, 0], [each.stderr for each in done]
    assert upstream_gets(bed, "lib/namespaces")[str(image.blobs[PLATFORM][1].digest)] == 1
    bed.assert_complete(host, image)


def test_containerd_has_hung_up_on_no_node(bed: Bed) -> None:
    """It does so to who pings it often, after some forty seconds: the bed is as old when all tests run."""
    for host in bed.hosts:
        assert host.node is not None
        assert "GOAWAY" not in host.node.log.read_text()
