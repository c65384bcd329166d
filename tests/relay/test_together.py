"""Hosts behind limited links that pull an image at the same moment, and what is killed, frozen or cut off meanwhile."""

from __future__ import annotations

import asyncio
import http.client
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from stafett.api.v1.types_pb2 import NODE_STATE_READY
from stafett.cli.local_cluster.cluster import Host
from stafett.cli.local_cluster.images import MadeImage
from stafett.cli.local_cluster.processes import wait_until
from stafett.common.digest import Digest
from stafett.node.containerd_store import ContainerdStore
from stafett.tracker.fellows import owner_of
from tests.chaos.net import connect
from tests.chaos.watchers import Watchers
from tests.e2e.bed import PLATFORM, digests_of
from tests.relay.bed import Pull, RelayBed, relay_bed

pytestmark = [
    pytest.mark.needs_root,
    pytest.mark.needs_program("containerd"),
    pytest.mark.needs_program("docker-registry"),
    pytest.mark.needs_program("nft"),
]

HOSTS = 6
LAYER_BYTES = 15_000_000


@pytest.fixture
def bed(tmp_path: Path) -> Iterator[RelayBed]:
    with relay_bed(tmp_path, hosts=HOSTS, rate_mbit=50) as started:
        yield started


def received_bytes(host: Host, digest: Digest) -> int:
    """How much of a blob a host's containerd has."""
    for path in [*(host.content_root / "ingest").glob("*/data"), host.content_root / "blobs" / "sha256" / digest.hex]:
        try:
            if path.name == digest.hex or digest.hex in path.with_name("ref").read_text():
                return path.stat().st_size
        except OSError:
            continue
    return 0


def range_status(host: Host, image: MadeImage, digest: Digest) -> int:
    """Ask a host's gateway for the first of several ranges, as containerd does with parallel ranges, and hang up."""
    registry, _, name = image.name.partition("/")
    connection = http.client.HTTPConnection("127.0.0.1", host.gateway_port)
    connection.sock = connect(host.place, host.gateway_port)
    path = f"/v2/{name.rpartition(':')[0]}/blobs/{digest}?ns={registry}"
    try:
        connection.request("GET", path, headers={"User-Agent": "containerd/2.1", "Range": "bytes=0-"})
        return connection.getresponse().status
    finally:
        connection.close()


class Pulling:
    """All hosts pull one large layer; `chain` is the order in which they get it."""

    def __init__(self, bed: RelayBed, repository: str) -> None:
        self.bed = bed
        self.image: MadeImage = bed.push(repository, [LAYER_BYTES])
        self.layer = self.image.blobs[PLATFORM][1].digest
        self.pulls: dict[str, Pull] = {}
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Pulling:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.join()

    def _run(self) -> None:
        self.pulls = self.bed.pull_all(self.image)

    def wait_halfway(self) -> list[Host]:
        """Wait until everybody has some of the layer; hosts by how much they have, the fetcher first."""
        got: dict[str, int] = {}

        def all_have() -> bool:
            got.update({host.name: received_bytes(host, self.layer) for host in self.bed.hosts})
            return all(size >= LAYER_BYTES // 8 for size in got.values())

        wait_until(all_have, "everybody has a part of the layer", 60)
        return sorted(self.bed.hosts, key=lambda host: -got[host.name])

    def assert_all_have_it(self, besides: Host | None = None) -> None:
        """Every other pull succeeded, and what is there is right."""
        self._thread.join()
        for host in self.bed.hosts:
            if host is not besides:
                assert self.pulls[host.name].error == "", host.name
                self.bed.bed.assert_complete(host, self.image)


def test_upstream_sends_one_copy_and_one_crosses_into_the_other_zone(bed: RelayBed) -> None:
    with Pulling(bed, "lib/calm") as pulling:
        follower = pulling.wait_halfway()[1]
        assert range_status(follower, pulling.image, pulling.layer) == 200, "clients are brought down to one stream"
    pulling.assert_all_have_it()
    assert bed.upstream_gets(pulling.image) == dict.fromkeys(digests_of(pulling.image), 1)
    assert bed.cross_zone_copies(pulling.image) < 1.3


def test_when_the_fetcher_is_killed_upstream_is_asked_for_the_missing_bytes_only(bed: RelayBed) -> None:
    with Pulling(bed, "lib/killed") as pulling:
        fetcher = pulling.wait_halfway()[0]
        bed.kill(fetcher)
    pulling.assert_all_have_it(besides=fetcher)
    assert bed.upstream_gets(pulling.image)[pulling.layer] <= 2
    assert bed.upstream_copies(pulling.image) < 1.7


def test_when_a_middle_host_is_frozen_only_its_follower_moves(bed: RelayBed) -> None:
    with (
        Watchers([tracker.port for tracker in bed.bed.cluster.trackers], bed.bed.cluster.address) as watchers,
        Pulling(bed, "lib/frozen") as pulling,
    ):
        frozen = pulling.wait_halfway()[1]
        for part in bed.parts(frozen):
            part.signal(signal.SIGSTOP)
        try:
            wait_until(lambda: bed.bed.node(frozen).state != 1, "the frozen host is out of service", 20)
            time.sleep(1)
        finally:
            for part in bed.parts(frozen):
                part.signal(signal.SIGCONT)
    pulling.assert_all_have_it(besides=frozen)
    moved = [host.name for host in bed.hosts if host is not frozen and bed.failovers(host)["stalled"]]
    assert len(moved) == 1
    assert {seen.node for seen in watchers.other_than(NODE_STATE_READY)} == {frozen.name}
    assert bed.upstream_gets(pulling.image)[pulling.layer] <= 2


def test_when_upstream_is_cut_off_halfway_whoever_can_be_served_is(bed: RelayBed) -> None:
    with Pulling(bed, "lib/cut") as pulling:
        pulling.wait_halfway()
        bed.network.cut_off(bed.bed.upstream.place)
        time.sleep(7)  # longer than a follower waits before it asks again
        bed.network.heal()
    assert bed.upstream_copies(pulling.image) < 2.5
    assert bed.cross_zone_copies(pulling.image) < 1.9
    assert {pull.error for pull in pulling.pulls.values()} == {""}


def test_when_upstream_is_gone_for_good_halfway_the_pulls_fail_soon_and_nothing_wrong_stays(bed: RelayBed) -> None:
    with Pulling(bed, "lib/gone") as pulling:
        pulling.wait_halfway()
        bed.bed.upstream.stop()
    for host in bed.hosts:
        pull = pulling.pulls[host.name]
        assert pull.error
        assert pull.seconds < 90
        assert not (host.content_root / "blobs" / "sha256" / pulling.layer.hex).exists()
    assert all(bed.bed.node(host).state == 1 for host in bed.hosts)


def test_when_redis_is_killed_halfway_nobody_notices(bed: RelayBed) -> None:
    with Pulling(bed, "lib/redis") as pulling:
        pulling.wait_halfway()
        redis = bed.bed.cluster.redis
        assert redis is not None
        redis.kill()
    pulling.assert_all_have_it()
    assert bed.upstream_gets(pulling.image)[pulling.layer] == 1


def test_when_the_tracker_that_decides_is_killed_halfway_nobody_notices(bed: RelayBed) -> None:
    trackers = {f"{bed.bed.cluster.address}:{tracker.port}": tracker for tracker in bed.bed.cluster.trackers}
    with Pulling(bed, "lib/tracker") as pulling:
        pulling.wait_halfway()
        trackers[owner_of(pulling.layer, trackers)].process.kill()
    pulling.assert_all_have_it()
    assert bed.upstream_gets(pulling.image)[pulling.layer] == 1


def test_when_a_hosts_download_is_aborted_its_followers_go_on(bed: RelayBed) -> None:
    async def abort(host: Host) -> None:
        assert host.containerd is not None
        with ThreadPoolExecutor(2) as disk:
            store = ContainerdStore(host.containerd.socket, (), host.content_root, disk)
            for ingest in await store.ingests(pulling.layer):
                await store.abort(ingest)
            await store.close()

    with Pulling(bed, "lib/aborted") as pulling:
        middle = pulling.wait_halfway()[1]
        asyncio.run(abort(middle))
    pulling.assert_all_have_it(besides=middle)
    assert bed.upstream_gets(pulling.image)[pulling.layer] <= 2
