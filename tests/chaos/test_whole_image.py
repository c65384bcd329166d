"""A real containerd pulls an image while a part of Stafett fails around it, on hosts with a network of their own."""

from __future__ import annotations

import json
import signal
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from stafett.cli.local_cluster.cluster import Host, LocalCluster
from stafett.cli.local_cluster.images import MadeImage, make_image
from stafett.cli.local_cluster.parts import run
from stafett.cli.local_cluster.processes import wait_until
from stafett.common.blob_files import blob_path
from stafett.common.digest import Digest
from tests.chaos.client import ask, counted, failovers
from tests.chaos.holders import READY, UPLOAD_BYTES_PER_SECOND
from tests.chaos.net import Network
from tests.e2e.bed import PLATFORM, Bed, digests_of
from tests.e2e.upstream import Upstream

pytestmark = [
    pytest.mark.needs_root,
    *(pytest.mark.needs_program(name) for name in ("containerd", "docker-registry", "nft", "tc", "nsenter")),
]

QUARANTINED = "stafett_gateway_quarantined_total"
LAYER_BYTES = 24_000_000
MIDDLE = 6_000_000
GAP_SECONDS = 3.0
"""Half more than the design allows to a holder that is cut off, as CI machines are slow."""


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    with Network.open() as network:
        yield network


@pytest.fixture(scope="module")
def shared(network: Network, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bed]:
    """Three hosts whose uploads are slow enough to be broken in the middle; all of one rack."""
    with LocalCluster(address=network.address) as cluster:
        upstream = Upstream(cluster.directory / "upstream", address=network.address)
        bed = Bed(cluster, upstream, tmp_path_factory.mktemp("layouts"))
        bed.start(3, place=network.add)
        for host in bed.hosts:
            assert host.node is not None
            host.node.stop()
            host.zone = "a"
            start_node(bed, host)
        yield bed


@pytest.fixture
def bed(shared: Bed, network: Network) -> Iterator[Bed]:
    """The shared bed, with everybody alive; the third host pulls."""
    wait_until(lambda: all(shared.node(host).state == READY for host in shared.hosts), "all nodes READY")
    yield shared
    network.heal()
    for host in shared.hosts:
        assert host.node is not None
        host.node.signal(signal.SIGCONT)
        if not host.node.alive:
            start_node(shared, host)
        assert host.gateway is not None
        if not host.gateway.alive:
            start_gateway(shared, host)


def start_gateway(bed: Bed, host: Host) -> None:
    urls = json.dumps({bed.upstream.registry: bed.upstream.url})
    bed.cluster.start_gateway(host, {"upstream_urls": urls})


def start_node(bed: Bed, host: Host) -> None:
    bed.cluster.start_node(host, {"upload_limit_bytes_per_second": UPLOAD_BYTES_PER_SECOND})


def spread(bed: Bed, repository: str, *, layer_bytes: int = LAYER_BYTES) -> MadeImage:
    """Make an image that the first two hosts hold."""
    image = bed.push_image(repository, {PLATFORM: [layer_bytes]}, seed=zlib.crc32(repository.encode()))
    for host in bed.hosts[:2]:
        bed.pull(host, image.name)
        bed.wait_held(host, digests_of(image))
    return image


def received_bytes(host: Host) -> int:
    """Bytes of downloads that the host's containerd has under way."""
    return sum(path.stat().st_size for path in host.content_root.glob("ingest/*/data"))


def pull_while(bed: Bed, host: Host, image: MadeImage, fault: Callable[[], object]) -> None:
    """Pull, and inject a fault when the layer is half-way; the pull must succeed."""
    failures: list[BaseException] = []

    def pull() -> None:
        try:
            bed.pull(host, image.name)
        except BaseException as error:  # noqa: BLE001 - handed to the test's own thread
            failures.append(error)

    puller = threading.Thread(target=pull)
    puller.start()
    try:
        wait_until(lambda: received_bytes(host) > MIDDLE, "the host in the middle of the layer")
        fault()
    finally:
        puller.join(60)
    assert not puller.is_alive()
    assert not failures, failures
    bed.assert_complete(host, image)


def serving(bed: Bed, network: Network) -> Host:
    """Tell which of the first two hosts sends now."""
    hosts = bed.hosts[:2]
    before = {host.name: network.sent_bytes(host.place) for host in hosts}
    time.sleep(0.3)
    return max(hosts, key=lambda host: network.sent_bytes(host.place) - before[host.name])


def kill(network: Network, host: Host) -> None:
    assert host.node is not None
    host.node.signal(signal.SIGKILL)


def freeze(network: Network, host: Host) -> None:
    assert host.node is not None
    host.node.signal(signal.SIGSTOP)


def cut_off(network: Network, host: Host) -> None:
    network.cut_off(host.place)


@pytest.mark.parametrize("fault", [kill, freeze, cut_off])
def test_a_pull_goes_on_when_its_holder_is_killed_frozen_or_cut_off(
    bed: Bed, network: Network, fault: Callable[[Network, Host], None]
) -> None:
    repository = f"chaos/{fault.__name__}"
    image = spread(bed, repository)
    third = bed.hosts[2]
    upstream_before = bed.upstream.bodies(repository)
    hit: list[Host] = []

    def inject() -> None:
        hit.append(serving(bed, network))
        fault(network, hit[0])

    pull_while(bed, third, image, inject)
    layer = image.blobs[PLATFORM][1].digest
    assert failovers(third, hit[0].name, layer), "the gateway was reading from it"
    assert bed.upstream.bodies(repository) == upstream_before, "not a byte came from upstream"
    wait_until(lambda: bed.node(hit[0]).state != READY, "the lost node is noticed")
    wait_until(lambda: hit[0].name not in bed.holders(image.index.digest), "it is not offered any more")


def test_a_response_goes_on_when_its_holder_is_cut_off_from_the_network(bed: Bed, network: Network) -> None:
    layer = spread(bed, "chaos/cut-off-one").blobs[PLATFORM][1].digest
    by_name = {host.name: host for host in bed.hosts}
    answer = ask(bed.hosts[2], layer, at_bytes=MIDDLE, then=lambda node: network.cut_off(by_name[node].place))
    assert answer.is_all_of(layer)
    assert answer.longest_gap_seconds < GAP_SECONDS


def test_a_slow_holder_is_left_and_the_pull_takes_little_longer(bed: Bed, network: Network) -> None:
    layer = spread(bed, "chaos/slow", layer_bytes=36_000_000).blobs[PLATFORM][1].digest
    for host in bed.hosts[:2]:  # what was met at its process before does not count
        assert host.node is not None
        host.node.stop()
        start_node(bed, host)
        bed.wait_held(host, [layer])
    by_name = {host.name: host for host in bed.hosts}
    healthy = ask(bed.hosts[2], layer)
    assert healthy.is_all_of(layer)

    def slow(node: str) -> None:
        network.slow(by_name[node].place, UPLOAD_BYTES_PER_SECOND / 10)

    answer = ask(bed.hosts[2], layer, at_bytes=MIDDLE, then=slow)
    assert answer.is_all_of(layer)
    assert failovers(bed.hosts[2], answer.node, layer)
    assert answer.seconds < 1.5 * healthy.seconds
    other = next(host for host in bed.hosts[:2] if host.name != answer.node)

    def behaved(host: Host) -> float:
        """By its speed, or, if it was silent for a moment, by its outcomes."""
        components = bed.node(host).score.components
        return float(components["speed"] * components["outcomes"])

    wait_until(lambda: behaved(by_name[answer.node]) < behaved(other), "the score falls")


def damage_who_is_asked(bed: Bed, layer: Digest, damage: Callable[[Path], object]) -> tuple[Host, Host]:
    """Damage a holder's file of a layer and ask until the gateway has met it; return that host, and the other one."""
    third = bed.hosts[2]
    asked = ask(third, layer, method="HEAD").node
    victim, other = sorted(bed.hosts[:2], key=lambda host: host.name != asked)
    damage(blob_path(victim.content_root, layer))
    for _ in range(8):  # the choice may turn, as loads do
        assert ask(third, layer).is_all_of(layer)
        if failovers(third, victim.name, layer):
            return victim, other
    raise AssertionError(f"{victim.name} was never asked")


def test_a_file_lost_behind_containerds_back_costs_nothing_and_is_not_announced_again(bed: Bed) -> None:
    layer = spread(bed, "chaos/lost", layer_bytes=2_000_000).blobs[PLATFORM][1].digest
    victim, other = damage_who_is_asked(bed, layer, Path.unlink)
    wait_until(lambda: victim.name not in bed.holders(layer), "the holding is withdrawn")
    time.sleep(1.5)  # a listing, which containerd answers from its database
    assert bed.holders(layer) == [other.name]


def test_a_disk_with_input_output_errors_costs_nothing_and_lowers_the_health(bed: Bed) -> None:
    layer = spread(bed, "chaos/eio", layer_bytes=2_000_000).blobs[PLATFORM][1].digest

    def spoil(path: Path) -> None:
        path.unlink()
        path.symlink_to("/proc/self/mem")  # the kernel gives EIO for what is at address 0

    victim, _ = damage_who_is_asked(bed, layer, spoil)
    wait_until(lambda: bed.node(victim).score.components["disk"] < 1.0, "the score falls")
    assert bed.node(victim).state == READY


@pytest.fixture
def liar(bed: Bed) -> Iterator[Host]:
    """The first host, which is asked first as the second one stands in another zone."""
    second = bed.hosts[1]
    assert second.node is not None
    second.node.stop()
    second.zone = "b"
    start_node(bed, second)
    yield bed.hosts[0]
    second.node.stop()
    second.zone = "a"


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.chmod(0o644)
    path.write_bytes(content)


@pytest.mark.parametrize("upstream_lives", [True, False])
def test_a_corrupted_copy_costs_one_attempt_at_most_and_the_next_is_served_by_the_other_holder(
    bed: Bed, liar: Host, upstream_lives: bool
) -> None:
    repository = f"chaos/corrupted-{upstream_lives}".lower()
    image = spread(bed, repository, layer_bytes=3_000_000)
    layer = image.blobs[PLATFORM][1].digest
    bed.wait_tagged(image.name)
    third = bed.hosts[2]
    assert third.containerd is not None
    before = counted(third, QUARANTINED), bed.upstream.bodies(repository)
    flip_a_byte(blob_path(liar.content_root, layer))
    if not upstream_lives:
        bed.upstream.stop()
    try:
        third.containerd.pull(image.name, "--platform", PLATFORM)  # may fail, once
        assert counted(third, QUARANTINED) == before[0] + 1, "the wrong bytes were met"
        ingests = third.content_root / "ingest"
        wait_until(lambda: not any(ingests.iterdir()), "containerd has dropped the failed download")
        bed.pull(third, image.name)
        bed.assert_complete(third, image)
        assert bed.upstream.bodies(repository) == before[1], "not a byte came from upstream"
        wait_until(lambda: liar.name not in bed.holders(layer), "the corrupted copy is withdrawn")
    finally:
        if not upstream_lives:
            bed.upstream.start(bed.cluster.processes)


def test_with_all_holders_gone_containerd_gets_the_rest_from_upstream(bed: Bed) -> None:
    image = spread(bed, "chaos/all-gone")
    layer = image.blobs[PLATFORM][1]

    def kill_both() -> None:
        for host in bed.hosts[:2]:
            assert host.node is not None
            host.node.signal(signal.SIGKILL)

    pull_while(bed, bed.hosts[2], image, kill_both)
    assert rest_of(bed, "chaos/all-gone", layer.size_bytes), "the rest, not the whole, came from upstream"


def test_with_its_gateway_killed_containerd_gets_the_rest_from_upstream(bed: Bed) -> None:
    image = spread(bed, "chaos/no-gateway")
    layer = image.blobs[PLATFORM][1]
    third = bed.hosts[2]
    assert third.gateway is not None
    pull_while(bed, third, image, third.gateway.kill)
    assert rest_of(bed, "chaos/no-gateway", layer.size_bytes), "the rest, not the whole, came from upstream"
    assert third.node is not None
    assert third.node.alive
    bed.wait_held(third, digests_of(image))


def rest_of(bed: Bed, repository: str, size_bytes: int) -> bool:
    """Tell whether upstream served a part of a layer, once."""
    parts = [access.size_bytes for access in bed.upstream.bodies(repository) if access.status == 206]
    return len(parts) == 1 and 0 < parts[0] <= size_bytes - MIDDLE


def test_while_containerd_is_away_its_gateway_serves_and_afterwards_its_node_follows_it_again(bed: Bed) -> None:
    layer = spread(bed, "chaos/restart", layer_bytes=2_000_000).blobs[PLATFORM][1].digest
    third = bed.hosts[2]
    assert third.containerd is not None
    assert third.containerd.process is not None
    third.containerd.process.stop()
    wait_until(lambda: not bed.node(third).health.store_available, "the node says that its store is away")
    assert ask(third, layer).is_all_of(layer)
    third.containerd.start(bed.cluster.processes, "containerd-h3")
    wait_until(lambda: bed.node(third).health.store_available, "the node says that its store is back")
    imported = make_image(bed.layouts / "imported", "reg.test/chaos/imported:1", {PLATFORM: [300_000]}, seed=5)
    archive = bed.layouts / "imported.tar"
    assert run(["tar", "-cf", archive, "-C", bed.layouts / "imported", "."]).returncode == 0
    assert third.containerd.ctr("images", "import", str(archive)).returncode == 0
    bed.wait_held(third, digests_of(imported))
