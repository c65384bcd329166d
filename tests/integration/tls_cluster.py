"""A cluster with certificates: Redis, a tracker, two nodes and a gateway as processes, each with files of its own."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

import grpc
import trustme

from stafett.api.v1 import tracker_pb2, tracker_pb2_grpc, types_pb2
from stafett.cli.local_cluster.images import MadeImage, make_image
from stafett.cli.local_cluster.parts import start_redis, start_service
from stafett.cli.local_cluster.processes import Process, Processes, free_port, wait_until
from stafett.common.errors import StartupFailed
from stafett.common.grpc_transport import TlsFiles, blocking_tracker_channel
from tests.chaos.pullers import PLATFORM, REGISTRY
from tests.integration.tls import write_identity

HOST = "127.0.0.1"


@dataclass
class Identity:
    """A folder of certificate files behind a link, as Kubernetes mounts a secret: new ones appear all at once."""

    folder: Path
    issues: int = 0

    @property
    def files(self) -> TlsFiles:
        mounted = self.folder / "mounted"
        return TlsFiles(mounted / "tls.crt", mounted / "tls.key", mounted / "ca.crt")

    def issue(self, signer: trustme.CA, *believed: trustme.CA) -> None:
        """Put there a certificate of this signer, and believe these (the signer, unless told otherwise)."""
        self.issues += 1
        fresh = self.folder / f"issue-{self.issues}"
        fresh.mkdir(parents=True)
        files = write_identity(fresh, signer, HOST, "localhost")
        files.authority.write_bytes(b"".join(one.cert_pem.bytes() for one in believed or (signer,)))
        link = self.folder / "next"
        link.symlink_to(fresh)
        os.replace(link, self.folder / "mounted")


@dataclass
class TlsCluster:
    """A running cluster. A context manager: leaving it ends everything."""

    directory: Path
    authority: trustme.CA
    processes: Processes = field(init=False)
    parts: dict[str, Process] = field(default_factory=dict)
    identities: dict[str, Identity] = field(default_factory=dict)
    images: list[MadeImage] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.processes = Processes(self.directory / "logs")
        self.tracker_port, self.gateway_port, self.redis_port = (free_port() for _ in range(3))
        self.node_ports = {"node-a": free_port(), "node-b": free_port()}

    def __enter__(self) -> TlsCluster:
        start_redis(self.processes, self.redis_port, self.directory / "redis")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.processes.__exit__()

    def identity(self, name: str) -> Identity:
        """The files of a part, issued by the cluster's authority if there are none yet."""
        if name not in self.identities:
            self.identities[name] = Identity(self.directory / "tls" / name)
            self.identities[name].issue(self.authority)
        return self.identities[name]

    def start(
        self, name: str, service: str, port: int, environment: Mapping[str, str] | None = None, **settings: object
    ) -> Process:
        """Start a part with its files."""
        merged = {**self._tls(name), "listen_port": port, **settings}
        self.parts[name] = start_service(self.processes, service, name, merged, port=port, environment=environment)
        return self.parts[name]

    def start_tracker(self, **environment: str) -> Process:
        """Start the tracker."""
        redis = f"redis://{HOST}:{self.redis_port}/0"
        return self.start("tracker", "tracker", self.tracker_port, environment, redis_url=redis)

    def start_node(self, name: str) -> Process:
        """Start a node that has all images."""
        layout = self.directory / "layout"
        if not self.images:
            for number, size in enumerate((6_000_000, 2_000_000, 400_000)):
                image = make_image(layout, f"{REGISTRY}/tls/image{number}:1", {PLATFORM: [size]}, seed=number)
                self.images.append(image)
        own = self.directory / f"layout-{name}"
        shutil.copytree(layout, own, dirs_exist_ok=True)
        return self.start(
            name,
            "node",
            self.node_ports[name],
            node_id=name,
            tracker=self.tracker_target,
            store="oci-layout",
            content_root=own,
            upload_limit_bytes_per_second=16_000_000,
        )

    def start_gateway(self) -> Process:
        """Start a gateway on a host without a node."""
        return self.start(
            "gateway",
            "gateway",
            self.gateway_port,
            tag_port=free_port(),
            node_id="host",
            node_target=f"{HOST}:{free_port()}",
            tracker=self.tracker_target,
        )

    @property
    def tracker_target(self) -> str:
        """gRPC target of the tracker."""
        return f"ipv4:{HOST}:{self.tracker_port}"

    def nodes(self) -> dict[str, str]:
        """State of each node, as a command with a certificate of the cluster hears it; empty if it hears nothing."""
        try:
            with blocking_tracker_channel(self.tracker_target, self.identity("command").files) as channel:
                stub = tracker_pb2_grpc.TrackerServiceStub(channel)
                answer = stub.ListNodes(tracker_pb2.ListNodesRequest(), timeout=3)
        except (grpc.RpcError, StartupFailed):
            return {}
        return {node.id: types_pb2.NodeState.Name(node.state) for node in answer.nodes if node.blob_count}

    def wait_nodes(self, *names: str) -> None:
        """Wait until the tracker knows what these nodes hold."""
        wait_until(lambda: set(names) <= self.nodes().keys(), f"{names} known")

    def _tls(self, name: str) -> Mapping[str, object]:
        files = self.identity(name).files
        return {"tls_certificate": files.certificate, "tls_key": files.key, "tls_authority": files.authority}
