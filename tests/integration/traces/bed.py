"""A small real cluster, and a pull in it during which the host that serves is killed."""

from __future__ import annotations

import http.client
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc

from stafett.api.v1 import tracker_pb2, tracker_pb2_grpc
from stafett.cli.local_cluster.cluster import Host, LocalCluster
from stafett.cli.local_cluster.processes import wait_until
from stafett.common.blob_files import blob_path
from stafett.common.digest import Digest

CONTENT = random.Random(5).randbytes(20_000_000)
D = Digest.of(CONTENT)
PATH = f"/v2/lib/app/blobs/{D}?ns=reg.test"
UPLOAD_LIMIT = 1_000_000
"""Bytes per second of the host that will be killed: slow enough for the other one to start meanwhile."""


@dataclass
class TracedCluster:
    """One tracker; a host that asks, one near it, which has the blob, and a far one, which gets it during the pull."""

    cluster: LocalCluster
    asking: Host
    near: Host
    far: Host

    @property
    def gateway_log(self) -> str:
        assert self.asking.gateway is not None
        return self.asking.gateway.log.read_text()

    def get(self, headers: Mapping[str, str], path: str = PATH) -> tuple[http.client.HTTPResponse, bytes]:
        """Ask the gateway, and read the answer to its end."""
        connection = http.client.HTTPConnection("127.0.0.1", self.asking.gateway_port, timeout=30)
        try:
            connection.request("GET", path, headers=dict(headers))
            answer = connection.getresponse()
            return answer, answer.read()
        finally:
            connection.close()

    def pull_with_failover(self, headers: Mapping[str, str]) -> http.client.HTTPResponse:
        """Pull the blob; the near host is killed after the first bytes, when the far one has come up."""
        connection = http.client.HTTPConnection("127.0.0.1", self.asking.gateway_port, timeout=60)
        try:
            connection.request("GET", PATH, headers=dict(headers))
            answer = connection.getresponse()
            assert answer.status == 200
            received = answer.read(1000)
            self.hold(self.far)
            assert self.near.node is not None
            self.near.node.kill()
            received += answer.read()
            assert Digest.of(received) == D
            return answer
        finally:
            connection.close()

    def hold(self, host: Host, settings: Mapping[str, object] | None = None) -> None:
        """Give a host the blob and start its node, until a tracker knows of it."""
        blob = blob_path(host.content_root, D)
        blob.parent.mkdir(parents=True, exist_ok=True)
        blob.write_bytes(CONTENT)
        self.cluster.start_node(host, settings)
        wait_until(lambda: host.name in self._holders(), f"{host.name} known as a holder")

    def _holders(self) -> set[str]:
        [tracker] = self.cluster.trackers
        with grpc.insecure_channel(f"127.0.0.1:{tracker.port}", options=[("grpc.enable_http_proxy", 0)]) as channel:
            stub = tracker_pb2_grpc.TrackerServiceStub(channel)
            answer = stub.Locate(tracker_pb2.LocateRequest(digests=[str(D)]), timeout=5)
        return {node.id for node in answer.nodes}


@contextmanager
def traced_cluster(directory: Path) -> Iterator[TracedCluster]:
    """Start it, with our environment."""
    directory.mkdir(exist_ok=True)
    with LocalCluster(directory) as cluster:
        cluster.start_redis()
        cluster.start_tracker()
        asking = cluster.add_host("asking", zone="a", rack="r1")
        near = cluster.add_host("near", zone="a", rack="r1")
        far = cluster.add_host("far", zone="b", rack="r2")
        traced = TracedCluster(cluster, asking, near, far)
        cluster.start_node(asking)
        traced.hold(near, {"upload_limit_bytes_per_second": UPLOAD_LIMIT})
        cluster.start_gateway(asking)
        yield traced
