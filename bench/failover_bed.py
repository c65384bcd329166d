"""What the failover benchmark breaks: three holders behind proxies, three gateways, and eyes on all of it."""

from __future__ import annotations

import os
import shutil
import struct
import threading
import time
import urllib.request
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

import grpc
import psutil

from bench.watched_pull import WatchedPull
from stafett.api.v1 import tracker_pb2, tracker_pb2_grpc
from stafett.cli.local_cluster.cluster import Host, LocalCluster
from stafett.cli.local_cluster.processes import Process, wait_until
from stafett.common.blob_files import blob_path
from stafett.common.digest import Digest
from tests.chaos.tcp_proxy import TcpProxy, Way
from tests.chaos.watchers import Watchers

HOLDERS = 3
READERS = 3
SMALL_BLOBS = 256
SMALL_BYTES = 16 * 1024
PROBE_PAUSE_SECONDS = 0.1
RECOVERY_SECONDS = 60.0
_PIECE_BYTES = 4 * 1024 * 1024
_NO_PROXY = (("grpc.enable_http_proxy", 0),)
_PREFACE_BYTES = 24
_FRAME_HEAD_BYTES = 9
_HEADERS_FRAME = 1


@dataclass(frozen=True, slots=True)
class Blob:
    """A blob that all holders have."""

    digest: Digest
    size_bytes: int

    @property
    def path(self) -> str:
        return f"/v2/bench/blob/blobs/{self.digest}?ns=reg.test"


@dataclass
class StreamCounter:
    """Counts the HTTP/2 streams that one client opens, from the bytes that it sends."""

    opened: Callable[[], None]
    _unread: bytes = b""
    _skip: int = _PREFACE_BYTES

    def __call__(self, piece: bytes) -> None:
        self._unread += piece
        while True:
            skipped = min(self._skip, len(self._unread))
            self._unread, self._skip = self._unread[skipped:], self._skip - skipped
            if self._skip or len(self._unread) < _FRAME_HEAD_BYTES:
                return
            length = int.from_bytes(self._unread[:3], "big")
            (kind,) = struct.unpack_from("B", self._unread, 3)
            if kind == _HEADERS_FRAME:
                self.opened()
            self._skip = _FRAME_HEAD_BYTES + length


@dataclass(frozen=True, slots=True)
class Touch:
    """A gateway has sent a holder a request."""

    at: float
    gateway: str


@dataclass
class Holder:
    """One holder: its host, the proxy in front of its node, and those between it and the trackers."""

    host: Host
    front: TcpProxy
    to_trackers: list[TcpProxy]
    touches: list[Touch] = field(default_factory=list)

    @property
    def node(self) -> Process:
        assert self.host.node is not None
        return self.host.node

    def asked_by(self, gateways: Sequence[Host], since: float) -> int:
        """How often these gateways have asked it since then."""
        names = {host.name for host in gateways}
        return sum(1 for touch in list(self.touches) if touch.at >= since and touch.gateway in names)


class OtherClients:
    """Clients of the other gateways, who fetch small blobs one after the other. A context manager."""

    def __init__(self, bed: Bed, holder: Holder) -> None:
        self._bed = bed
        self._holder = holder
        self._started = time.monotonic()
        self._failovers = self._count_failovers()
        self._stopping = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(host,)) for host in bed.readers[1:]]
        self.requests = 0
        self.max_seconds = 0.0
        self.problems: list[str] = []

    @property
    def touched(self) -> int:
        """How many of their requests were sent to the broken holder.

        Streams that came as far as the proxy, or holders left by the gateways, whichever are more: a node that refuses
        sees no stream, and a silent one that a hedge has overtaken is not counted as left. Connections are not counted,
        as gRPC repeats them by itself.
        """
        asked = self._holder.asked_by(self._bed.readers[1:], self._started)
        return max(asked, self._count_failovers() - self._failovers)

    def _count_failovers(self) -> int:
        return sum(failovers(host) for host in self._bed.readers[1:])

    def __enter__(self) -> OtherClients:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join()

    def _run(self, host: Host) -> None:
        while not self._stopping.wait(PROBE_PAUSE_SECONDS):
            blob = self._bed.next_small()
            pulled = self._bed.pull(host, blob).result()
            self.requests += 1
            self.max_seconds = max(self.max_seconds, pulled.seconds)
            if pulled.problem:
                self.problems.append(f"{host.name}: {pulled.problem}")


class Bed:
    """A running cluster; a context manager."""

    def __init__(self, upload_bytes_per_second: int) -> None:
        self.upload_bytes_per_second = upload_bytes_per_second
        self._stack = ExitStack()
        self._small: list[Blob] = []
        self._small_next = 0
        self.holders: list[Holder] = []
        self.readers: list[Host] = []

    def __enter__(self) -> Bed:
        with self._stack:
            self.cluster = self._stack.enter_context(LocalCluster())
            self._start()
            self._stack = self._stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    def _start(self) -> None:
        self.cluster.start_redis()
        for _ in range(2):
            self.cluster.start_tracker()
        self._watchers = self._stack.enter_context(Watchers([tracker.port for tracker in self.cluster.trackers]))
        for number in range(1, HOLDERS + 1):
            self._add_holder(f"h{number}")
        for number in range(1, READERS + 1):
            reader = self.cluster.add_host(f"r{number}", zone="a", rack="a1")
            self.cluster.start_node(reader)
            self.cluster.start_gateway(reader)
            self.readers.append(reader)
        self._small = [self.add_blob(SMALL_BYTES) for _ in range(SMALL_BLOBS)]
        self.wait_healthy(self._small[-1])

    def _add_holder(self, name: str) -> None:
        host = self.cluster.add_host(name, zone="a", rack="a1")
        front = self._stack.enter_context(TcpProxy(host.node_port, tap=lambda port: self._tap(holder, port)))
        to_trackers = [self._stack.enter_context(TcpProxy(tracker.port)) for tracker in self.cluster.trackers]
        holder = Holder(host, front, to_trackers)
        self.holders.append(holder)
        self.start_node(holder)

    def start_node(self, holder: Holder) -> None:
        """Start (again) the node of a holder."""
        target = "ipv4:" + ",".join(f"127.0.0.1:{proxy.port}" for proxy in holder.to_trackers)
        settings = {
            "advertise_port": holder.front.port,
            "tracker": target,
            "upload_limit_bytes_per_second": self.upload_bytes_per_second,
        }
        self.cluster.start_node(holder.host, settings)

    def add_blob(self, size_bytes: int) -> Blob:
        """Make a blob of random bytes and give it to all holders."""
        made = self.cluster.directory / "made"
        with made.open("wb") as output:
            while left := size_bytes - output.tell():
                output.write(os.urandom(min(_PIECE_BYTES, left)))
        with made.open("rb") as content:
            digest = Digest.of(content.read())
        for holder in self.holders:
            unnamed = holder.host.content_root / "made"
            shutil.copyfile(made, unnamed)
            unnamed.rename(self.file_of(holder, digest))
        made.unlink()
        return Blob(digest, size_bytes)

    def remove_blob(self, blob: Blob) -> None:
        """Take a blob from all holders."""
        for holder in self.holders:
            self.file_of(holder, blob.digest).unlink()

    def file_of(self, holder: Holder, digest: Digest) -> Path:
        """Where a holder keeps a blob."""
        return blob_path(holder.host.content_root, digest)

    def next_small(self) -> Blob:
        """Choose small blobs in turn."""
        self._small_next += 1
        return self._small[self._small_next % len(self._small)]

    def pull(self, reader: Host, blob: Blob) -> WatchedPull:
        """Begin a pull through a gateway."""
        return WatchedPull(reader.gateway_port, blob.path, blob.digest, blob.size_bytes)

    def serving(self, seconds: float = 0.15) -> Holder:
        """Find the holder that sends most at this moment."""
        before = [holder.front.passed_bytes[Way.DOWN] for holder in self.holders]
        time.sleep(seconds)
        sent = [holder.front.passed_bytes[Way.DOWN] - old for holder, old in zip(self.holders, before, strict=True)]
        return self.holders[sent.index(max(sent))]

    def unselectable_seconds(self, holder: Holder, since: float) -> float | None:
        """After what time the last tracker had told its gateways; None while one has not."""
        return self._watchers.out_of_service_after(holder.host.name, since)

    def wait_healthy(self, blob: Blob) -> None:
        """Wait until every holder may be chosen, and all trackers offer all of them for the blob."""
        names = {holder.host.name for holder in self.holders}
        wait_until(
            lambda: (
                all(self._watchers.is_ready(name) for name in names)
                and all(self._located(tracker.port, blob) == names for tracker in self.cluster.trackers)
            ),
            "all holders ready and offered",
            RECOVERY_SECONDS,
        )

    def _located(self, port: int, blob: Blob) -> set[str]:
        with grpc.insecure_channel(f"127.0.0.1:{port}", options=_NO_PROXY) as channel:
            stub = tracker_pb2_grpc.TrackerServiceStub(channel)
            request = tracker_pb2.LocateRequest(digests=[str(blob.digest)], max_holders=64)
            try:
                answer = stub.Locate(request, timeout=2)
            except grpc.RpcError:
                return set()
        return {holder.node_id for holder in answer.blobs[0].holders}

    def _tap(self, holder: Holder, port: int) -> StreamCounter:
        gateway = _owner(self.readers, port)

        def touch() -> None:
            holder.touches.append(Touch(time.monotonic(), gateway))

        return StreamCounter(touch)


def failovers(host: Host) -> int:
    """How often a gateway has left a holder for another one, by its metrics."""
    with urllib.request.urlopen(f"{host.gateway_url}/metrics", timeout=10) as response:
        lines = response.read().decode().splitlines()
    return sum(int(float(line.split()[-1])) for line in lines if line.startswith("stafett_gateway_failovers_total"))


def _owner(readers: Sequence[Host], port: int) -> str:
    """Name the host whose gateway has a connection from this port; empty when it is somebody else, as a tracker."""
    for reader in readers:
        if reader.gateway is not None and reader.gateway.alive:
            for connection in psutil.Process(reader.gateway.pid).net_connections("tcp"):
                if connection.laddr and connection.laddr.port == port:
                    return reader.name
    return ""
