"""A test bed: registry, Redis, two trackers, and hosts with a private containerd, a node and a gateway each."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import grpc

from stafett.api.v1 import tracker_pb2, tracker_pb2_grpc, types_pb2
from stafett.cli.local_cluster.cluster import Host, LocalCluster
from stafett.cli.local_cluster.images import OCI, Format, MadeImage, make_image
from stafett.cli.local_cluster.processes import HERE, Place, wait_until
from stafett.common.digest import Digest
from tests.e2e.upstream import Upstream

PLATFORM = "linux/amd64"
TWO_PLATFORMS: Mapping[str, Sequence[int]] = {
    "linux/amd64": [200_000, 3_000_000, 12_000_000],
    "linux/arm64": [200_000, 500_000],
}


@dataclass
class Bed:
    """What a test needs at hand."""

    cluster: LocalCluster
    upstream: Upstream
    layouts: Path

    @property
    def hosts(self) -> list[Host]:
        return self.cluster.hosts

    def start(
        self,
        host_count: int = 3,
        *,
        cri: bool = False,
        gateway_environment: Mapping[str, str] | None = None,
        place: Callable[[], Place] = lambda: HERE,
    ) -> None:
        """Start everything; hosts are named h1, h2, ... and stand in two zones, each in a place of its own."""
        self.upstream.start(self.cluster.processes)
        self.cluster.start_redis()
        self.cluster.start_tracker()
        self.cluster.start_tracker()
        for number in range(1, host_count + 1):
            host = self.cluster.add_host(f"h{number}", zone="ab"[number % 2], containerd=True, cri=cri, place=place())
            self.write_hosts(host)
            self.start_stafett(host, gateway_environment)
        self.wait_ready_nodes(host_count)

    def start_stafett(self, host: Host, environment: Mapping[str, str] | None = None) -> None:
        """Start node and gateway of a host."""
        self.cluster.start_node(host)
        urls = json.dumps({self.upstream.registry: self.upstream.url})
        self.cluster.start_gateway(host, {"upstream_urls": urls}, environment=environment)

    def write_hosts(self, host: Host) -> None:
        """Point the host's containerd at its gateway, as the design's *Tags* has it."""
        assert host.containerd is not None
        host.containerd.write_hosts(self.upstream.registry, host.gateway_url, self.upstream.url, host.tag_url)

    def push_image(
        self,
        repository: str,
        layers: Mapping[str, Sequence[int]] = TWO_PLATFORMS,
        *,
        tag: str = "1",
        image_format: Format = OCI,
        seed: int = 0,
    ) -> MadeImage:
        """Make an image and put it into the upstream registry."""
        name = f"{self.upstream.registry}/{repository}:{tag}"
        layout = self.layouts / repository.replace("/", "-") / f"{tag}-{seed}"
        made = make_image(layout, name, layers, image_format=image_format, seed=seed)
        self.upstream.push(layout, name, made.index)
        return made

    def pull(self, host: Host, name: str, *options: str) -> None:
        """Pull by `ctr images pull` and check that containerd holds all of it, intact."""
        assert host.containerd is not None
        result = host.containerd.pull(name, "--platform", PLATFORM, *options)
        assert result.returncode == 0, f"{result.stdout[-2000:]}\n{result.stderr}"

    def ctr(self, host: Host, *arguments: str) -> str:
        """Run ctr on a host; return what it prints."""
        assert host.containerd is not None
        return host.containerd.ctr(*arguments).stdout

    def assert_complete(self, host: Host, image: MadeImage) -> None:
        """Read all content of the platform back from containerd's store and check the digests."""
        for digest in digests_of(image):
            content = (host.content_root / "blobs" / "sha256" / digest.hex).read_bytes()
            assert Digest.of(content) == digest

    def wait_held(self, host: Host, digests: Iterable[Digest]) -> None:
        """Wait until the trackers know that the host holds all of them."""
        wanted = list(digests)

        def held() -> bool:
            answer = self._stub_call(wanted)
            return all(any(holder.node_id == host.name for holder in blob.holders) for blob in answer.blobs)

        wait_until(held, f"{host.name} announced as holder of {len(wanted)} digests")

    def wait_tagged(self, name: str) -> None:
        """Wait until the trackers know what a tag means: containerd records it after the last byte."""

        def known() -> bool:
            with grpc.insecure_channel(self.cluster.tracker_target, options=_NO_PROXY) as channel:
                stub = tracker_pb2_grpc.TrackerServiceStub(channel)
                images = stub.ListImages(tracker_pb2.ListImagesRequest(), timeout=2).images
                return any(image.name == name and image.complete_node_ids for image in images)

        wait_until(known, f"{name} announced")

    def wait_ready_nodes(self, count: int) -> None:
        """Wait until that many nodes have registered."""

        def registered() -> bool:
            with grpc.insecure_channel(self.cluster.tracker_target, options=_NO_PROXY) as channel:
                stub = tracker_pb2_grpc.TrackerServiceStub(channel)
                nodes = stub.ListNodes(tracker_pb2.ListNodesRequest(), timeout=2).nodes
                return sum(1 for node in nodes if node.state == 1) >= count

        wait_until(registered, f"{count} ready nodes")

    def holders(self, digest: Digest) -> list[str]:
        """Ask the trackers who holds a blob."""
        return [holder.node_id for holder in self._stub_call([digest]).blobs[0].holders]

    def sent_bytes(self, host: Host) -> int:
        """Bytes that the host's node has sent to peers, by its last heartbeat."""
        return self.node(host).health.sent_bytes

    def node(self, host: Host) -> types_pb2.Node:
        """Ask the trackers what they believe of a host's node."""
        with grpc.insecure_channel(self.cluster.tracker_target, options=_NO_PROXY) as channel:
            stub = tracker_pb2_grpc.TrackerServiceStub(channel)
            nodes = stub.ListNodes(tracker_pb2.ListNodesRequest(), timeout=2).nodes
        return next((node for node in nodes if node.id == host.name), types_pb2.Node())

    def _stub_call(self, digests: list[Digest]) -> tracker_pb2.LocateResponse:
        with grpc.insecure_channel(self.cluster.tracker_target, options=_NO_PROXY) as channel:
            stub = tracker_pb2_grpc.TrackerServiceStub(channel)
            request = tracker_pb2.LocateRequest(digests=[str(digest) for digest in digests], max_holders=64)
            return stub.Locate(request, timeout=2)


_NO_PROXY = (("grpc.enable_http_proxy", 0),)


def digests_of(image: MadeImage, platform: str = PLATFORM) -> list[Digest]:
    """All content of one platform: index, manifest, config, layers."""
    parts = (image.index, image.manifests[platform], *image.blobs[platform])
    return [part.digest for part in parts]
