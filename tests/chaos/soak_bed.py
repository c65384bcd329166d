"""A cluster to be worn out: holders that all have every image, hosts that only pull, three trackers, Redis."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Container, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

import grpc

from stafett.api.v1 import tracker_pb2, tracker_pb2_grpc, types_pb2
from stafett.cli.local_cluster.cluster import Host, LocalCluster, Tracker
from stafett.cli.local_cluster.containerd import containerd_available
from stafett.cli.local_cluster.images import MadeImage, make_image
from stafett.cli.local_cluster.processes import Process, wait_until
from stafett.common.digest import Digest
from tests.chaos.census import Census, CountedProcesses
from tests.chaos.pullers import PLATFORM, REGISTRY, ContainerdPuller, HttpPuller, Tally
from tests.chaos.tcp_proxy import TcpProxy

NO_PROXY = (("grpc.enable_http_proxy", 0),)
UPLOAD_BYTES_PER_SECOND = 8_000_000
"""What a holder sends at most, so that a layer takes long enough to be interrupted and the machine keeps up."""
IMAGES: Sequence[Sequence[int]] = ([9_000_000, 300_000], [200_000, 5_000_000], [2_500_000, 2_500_000, 100_000])
ALIVE_SECONDS = 20.0


@dataclass
class SoakBed:
    """A running cluster. A context manager: leaving it ends everything."""

    holder_count: int = 4
    client_count: int = 2
    tracker_count: int = 3
    with_containerd: bool = True
    through_proxies: bool = True
    node_settings: Mapping[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._stack = ExitStack()
        self.cluster = LocalCluster()
        self.census_directory = self.cluster.directory / "census"
        self.cluster.processes = CountedProcesses(self.cluster.processes.log_dir, directory=self.census_directory)
        self.proxies: dict[str, TcpProxy] = {}
        self.images: list[MadeImage] = []
        self.holders: list[Host] = []
        self.clients: list[Host] = []
        self.containerd_host: Host | None = None
        self.containerd_in_use = threading.Lock()

    def __enter__(self) -> Self:
        with ExitStack() as undo:
            undo.enter_context(self.cluster)
            self._start()
            self._stack = undo.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None and (target := os.environ.get("STAFETT_SOAK_LOGS")):
            shutil.copytree(self.cluster.processes.log_dir, target, dirs_exist_ok=True)
        for proxy in self.proxies.values():
            proxy.__exit__(None, None, None)
        self._stack.close()

    def _start(self) -> None:
        self.cluster.start_redis()
        for _ in range(self.tracker_count):
            self.start_tracker()
        self._make_images()
        for number in range(self.holder_count):
            host = self.cluster.add_host(f"holder{number}", zone="ab"[number % 2])
            shutil.copytree(self.cluster.directory / "images", host.content_root, dirs_exist_ok=True)
            if self.through_proxies:
                proxy = self.proxies[host.name] = TcpProxy(host.node_port)
                proxy.__enter__()
            self.holders.append(host)
        for number in range(self.client_count):
            self.clients.append(self.cluster.add_host(f"client{number}", zone="ab"[number % 2]))
        if self.with_containerd and containerd_available():
            self.containerd_host = self.cluster.add_host("realone", zone="a", containerd=True)
            self._write_hosts(self.containerd_host)
        for host in self.cluster.hosts:
            self.start_node(host)
        for host in self.gateway_hosts:
            self.start_gateway(host)
        self.wait_ready(host.name for host in self.cluster.hosts)
        self.wait_held()

    @property
    def gateway_hosts(self) -> list[Host]:
        """Hosts that pull."""
        return [*self.clients, *([self.containerd_host] if self.containerd_host else [])]

    def _make_images(self) -> None:
        for number, sizes in enumerate(IMAGES):
            name = f"{REGISTRY}/soak/image{number}:1"
            made = make_image(self.cluster.directory / "images", name, {PLATFORM: sizes}, seed=number)
            self.images.append(made)

    def _write_hosts(self, host: Host) -> None:
        """Nothing but the gateway: there is no upstream, so whatever it does not deliver fails the pull."""
        assert host.containerd is not None
        folder = host.containerd.hosts_dir / REGISTRY
        folder.mkdir(parents=True)
        text = f'server = "{host.gateway_url}"\n[host."{host.gateway_url}"]\n  capabilities = ["pull", "resolve"]\n'
        (folder / "hosts.toml").write_text(text)

    def start_tracker(self, port: int = 0) -> Tracker:
        """Start a tracker, or one again on its port."""
        return self.cluster.start_tracker(port=port)

    def start_node(self, host: Host) -> Process:
        """Start a host's node (again)."""
        settings: dict[str, object] = {"upload_limit_bytes_per_second": UPLOAD_BYTES_PER_SECOND, **self.node_settings}
        if proxy := self.proxies.get(host.name):
            settings["advertise_port"] = proxy.port
        return self.cluster.start_node(host, settings)

    def start_gateway(self, host: Host) -> Process:
        """Start a host's gateway (again)."""
        return self.cluster.start_gateway(host)

    def http_pullers(
        self, tally: Tally, *, each: int = 2, passes_over: bool = False, resumes: Container[int] = ()
    ) -> list[HttpPuller]:
        """Clients of the gateways: as containerd, and as one without fallback; `passes_over`: to the next gateway.

        Those on the hosts with a number in `resumes` also get the rest from the next gateway when theirs dies.
        """
        agents = ("containerd/2.1.0", "Go-http-client/1.1")
        ports = [host.gateway_port for host in self.clients]
        return [
            HttpPuller(
                f"http{place}.{number}",
                [*ports[place:], *ports[:place]] if passes_over or place in resumes else [ports[place]],
                tally,
                user_agent=agents[number % 2],
                resumes=place in resumes,
            )
            for place in range(len(ports))
            for number in range(each)
        ]

    def containerd_pullers(self, tally: Tally) -> list[ContainerdPuller]:
        """One real containerd, where it can run."""
        host = self.containerd_host
        if host is None or host.containerd is None:
            return []
        return [ContainerdPuller(host.name, host.containerd, tally, self.containerd_in_use)]

    def digests(self) -> list[Digest]:
        """Everything that holders have."""
        return sorted(
            {
                part.digest
                for image in self.images
                for part in (image.index, image.manifests[PLATFORM], *image.blobs[PLATFORM])
            },
            key=str,
        )

    def nodes(self) -> list[types_pb2.Node]:
        """All nodes as some tracker knows them."""
        with grpc.insecure_channel(self.cluster.tracker_target, options=NO_PROXY) as channel:
            stub = tracker_pb2_grpc.TrackerServiceStub(channel)
            return list(stub.ListNodes(tracker_pb2.ListNodesRequest(), timeout=5, wait_for_ready=True).nodes)

    def wait_ready(self, names: Iterable[str]) -> None:
        """Wait until these nodes are READY."""
        wanted = set(names)

        def ready() -> bool:
            return wanted <= {node.id for node in self.nodes() if node.state == types_pb2.NODE_STATE_READY}

        wait_until(ready, f"{sorted(wanted)} ready", ALIVE_SECONDS)

    def wait_held(self) -> None:
        """Wait until the trackers know every holder as holder of everything."""
        wanted = {host.name for host in self.holders}
        request = tracker_pb2.LocateRequest(digests=[str(digest) for digest in self.digests()], max_holders=64)

        def held() -> bool:
            with grpc.insecure_channel(self.cluster.tracker_target, options=NO_PROXY) as channel:
                blobs = tracker_pb2_grpc.TrackerServiceStub(channel).Locate(request, timeout=5).blobs
            return all(wanted <= {holder.node_id for holder in blob.holders} for blob in blobs)

        wait_until(held, "all holders announced", ALIVE_SECONDS)

    def census(self, survivors: Mapping[str, Process]) -> dict[str, Census]:
        """Count what the processes have open."""
        return {name: Census.take(process, self.census_directory) for name, process in survivors.items()}


def events(process: Process) -> list[str]:
    """Names of what the process has logged."""
    lines = process.log.read_text("utf-8", "replace").splitlines()
    return [str(json.loads(line).get("event")) for line in lines if line.startswith("{")]


def ended(process: Process, timeout_seconds: float = 30.0) -> int:
    """Wait until a process that was told to end has ended; return its exit code."""
    return process.popen.wait(timeout_seconds)


def pause(process: Process, seconds: float) -> None:
    """Stop a process for a moment."""
    process.signal(signal.SIGSTOP)
    try:
        time.sleep(seconds)
    finally:
        process.signal(signal.SIGCONT)
