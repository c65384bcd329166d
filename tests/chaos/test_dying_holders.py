"""A real containerd pulls while a holder dies, and does not notice."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from stafett.cli.local_cluster.cluster import Host, LocalCluster
from stafett.cli.local_cluster.processes import wait_until
from tests.e2e.bed import PLATFORM, Bed, digests_of
from tests.e2e.upstream import Upstream

pytestmark = [
    pytest.mark.needs_root,
    pytest.mark.needs_program("containerd"),
    pytest.mark.needs_program("docker-registry"),
]

LINK = {"upload_limit_bytes_per_second": 8_000_000}


@pytest.fixture
def slow_bed(tmp_path: Path) -> Iterator[Bed]:
    """Three hosts whose uploads are slow enough to be broken in the middle; all of one rack."""
    with LocalCluster() as cluster:
        bed = Bed(cluster, Upstream(cluster.directory / "upstream"), tmp_path)
        bed.start(3)
        for host in bed.hosts:
            assert host.node is not None
            host.node.stop()
            host.zone = "a"
            cluster.start_node(host, LINK)
        bed.wait_ready_nodes(3)
        yield bed


def received_bytes(host: Host) -> int:
    """Bytes of downloads that the host's containerd has under way."""
    return sum(path.stat().st_size for path in host.content_root.glob("ingest/*/data"))


@pytest.mark.parametrize("fault", [signal.SIGKILL, signal.SIGSTOP])
def test_a_pull_goes_on_from_another_holder_when_nodes_die_in_the_middle(slow_bed: Bed, fault: signal.Signals) -> None:
    first, second, third = slow_bed.hosts
    image = slow_bed.push_image("chaos/dying", {PLATFORM: [24_000_000]}, seed=int(fault))
    for host in (first, second):
        slow_bed.pull(host, image.name)
        slow_bed.wait_held(host, digests_of(image))
    before = slow_bed.upstream.bodies("chaos/dying")
    failures: list[BaseException] = []

    def pull() -> None:
        try:
            slow_bed.pull(third, image.name)
        except BaseException as error:  # noqa: BLE001 - handed to the test's own thread
            failures.append(error)

    puller = threading.Thread(target=pull)
    puller.start()
    wait_until(lambda: received_bytes(third) > 4_000_000, "the third host in the middle of the layer")
    sent = {host.name: slow_bed.sent_bytes(host) for host in (first, second)}
    wait_until(lambda: any(slow_bed.sent_bytes(h) > sent[h.name] for h in (first, second)), "a sending holder")
    serving = max((first, second), key=lambda host: slow_bed.sent_bytes(host) - sent[host.name])
    assert serving.node is not None
    serving.node.signal(fault)
    puller.join(60)
    assert not failures, failures
    slow_bed.assert_complete(third, image)
    assert slow_bed.upstream.bodies("chaos/dying") == before, "not a byte came from upstream"
    wait_until(lambda: serving.name not in slow_bed.holders(image.index.digest), "the dead holder is not offered")
