"""Redis is killed and a Sentinel promotes its replica, while clients pull without pause; there is no upstream."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import grpc
import pytest
from redis import Redis

from stafett.api.v1 import tracker_pb2, tracker_pb2_grpc, types_pb2
from stafett.cli.local_cluster.cluster import Tracker
from stafett.cli.local_cluster.parts import find_redis_server, start_redis
from stafett.cli.local_cluster.processes import free_port, wait_until
from tests.chaos.pullers import Pulling, Tally
from tests.chaos.soak_bed import NO_PROXY, SoakBed
from tests.chaos.watchers import Watchers

PULLS = 3
SENTINEL = """
bind 127.0.0.1
port {sentinel}
sentinel monitor main 127.0.0.1 {redis} 1
sentinel down-after-milliseconds main 1000
sentinel failover-timeout main 5000
"""


@dataclass
class FailoverBed(SoakBed):
    """Trackers find Redis through a Sentinel, which has a replica to promote."""

    holder_count: int = 2
    client_count: int = 1
    tracker_count: int = 2
    with_containerd: bool = False
    through_proxies: bool = False
    sentinel_port: int = 0
    replica_port: int = 0

    def start_tracker(self, port: int = 0) -> Tracker:
        """Start a tracker, before the first one the replica and the Sentinel."""
        if not self.sentinel_port:
            self._start_replica()
        url = f"redis+sentinel://127.0.0.1:{self.sentinel_port}/main/0"
        return self.cluster.start_tracker({"redis_url": url}, port=port)

    def _start_replica(self) -> None:
        self.replica_port, self.sentinel_port = free_port(), free_port()
        directory, processes = self.cluster.directory / "replica", self.cluster.processes
        follow = ("--replicaof", "127.0.0.1", str(self.cluster.redis_port), "--repl-diskless-sync-delay", "0")
        start_redis(processes, self.replica_port, directory, "replica", *follow)
        config = directory / "sentinel.conf"
        config.write_text(SENTINEL.format(sentinel=self.sentinel_port, redis=self.cluster.redis_port))
        processes.start("sentinel", [find_redis_server(), config, "--sentinel"])

    def role(self, port: int) -> tuple[str, int]:
        """Whether a server is master or slave, and how many keys it has."""
        with Redis(port=port) as client:
            return str(client.info("replication")["role"]), int(client.dbsize())


@pytest.fixture
def bed() -> Iterator[FailoverBed]:
    with FailoverBed() as started:
        yield started


def located(bed: SoakBed, port: int) -> tuple[int, bool]:
    """The fewest holders that a tracker knows of anything, and whether it says so from memory."""
    request = tracker_pb2.LocateRequest(digests=[str(digest) for digest in bed.digests()])
    with grpc.insecure_channel(f"127.0.0.1:{port}", options=NO_PROXY) as channel:
        answer = tracker_pb2_grpc.TrackerServiceStub(channel).Locate(request, timeout=5)
    return min(len(blob.holders) for blob in answer.blobs), answer.stale


@pytest.mark.timeout(180)
def test_no_pull_fails_and_no_node_loses_its_lease_while_a_replica_is_promoted(bed: FailoverBed) -> None:
    tally, ports = Tally(), [tracker.port for tracker in bed.cluster.trackers]
    wait_until(lambda: bed.role(bed.replica_port) == ("slave", bed.role(bed.cluster.redis_port)[1]), "replicated")
    fewest = bed.holder_count

    def answers_are(stale: bool) -> bool:
        nonlocal fewest
        answers = [located(bed, port) for port in ports]
        fewest = min(fewest, *(found for found, _ in answers))
        return all(answer_stale is stale for _, answer_stale in answers)

    assert answers_are(False)
    for puller in bed.http_pullers(tally, each=1):
        for image in bed.images:  # without Redis, trackers and gateways know what they have been asked before
            puller.pull(image)
    with (
        Watchers(ports) as watchers,
        Pulling(bed.http_pullers(tally), bed.images, tally, seed=0) as clients,
    ):
        clients.wait_pulls(PULLS)
        assert bed.cluster.redis is not None
        bed.cluster.redis.kill()
        wait_until(lambda: answers_are(True), "answers from memory")
        wait_until(lambda: answers_are(False), "answers from the promoted replica")
        assert bed.role(bed.replica_port)[0] == "master"
        clients.wait_pulls(PULLS)
        doubted = watchers.other_than(types_pb2.NODE_STATE_READY, types_pb2.NODE_STATE_SUSPECT)
        # What is written from now on is judged as before: a node that comes, and one that goes.
        coming, going = bed.clients[0], bed.holders[1]
        assert coming.node is not None
        assert going.node is not None
        epoch = {node.id: node.epoch for node in bed.nodes()}[coming.name]
        coming.node.kill()
        bed.start_node(coming)
        going.node.kill()
        wait_until(lambda: {n.id: n.epoch for n in bed.nodes()}[coming.name] > epoch, "it is back under a new epoch")
        wait_until(lambda: watchers.last(going.name) == {"NODE_STATE_DOWN"}, "the other one is down")
        clients.wait_pulls(PULLS)
    print(f"\n{tally}")
    assert not tally.failures, "\n".join(map(str, tally.failures))
    assert fewest == bed.holder_count, "no answer is ever short"
    assert not doubted, "nobody lost its lease"
