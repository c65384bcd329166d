"""An HTTP client that checks every byte: how a pull looks to whoever asks a gateway."""

from __future__ import annotations

import hashlib
import http.client
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import grpc

from stafett.api.v1 import node_pb2, node_pb2_grpc
from stafett.cli.local_cluster.cluster import Host
from stafett.common.digest import Digest
from tests.chaos.net import connect

READ_BYTES = 256 * 1024
SILENCE_SECONDS = 15.0
"""Longer than any silence that a gateway should let happen."""


@dataclass
class Answer:
    """One response; `node` and `source` are what its head says of the first server."""

    status: int
    node: str
    source: str
    promised_bytes: int
    received: bytearray = field(repr=False)
    first_byte_seconds: float = 0.0
    longest_gap_seconds: float = 0.0
    seconds: float = 0.0

    @property
    def complete(self) -> bool:
        return self.status in (200, 206) and len(self.received) == self.promised_bytes

    def is_all_of(self, digest: Digest) -> bool:
        """Tell whether the whole blob came, and nothing else."""
        return self.status == 200 and self.complete and Digest(hashlib.sha256(self.received).hexdigest()) == digest


def _nothing(node: str) -> None:
    """Do nothing."""


def ask(
    host: Host,
    digest: Digest,
    *,
    method: str = "GET",
    offset: int = 0,
    at_bytes: int = 0,
    then: Callable[[str], object] = _nothing,
) -> Answer:
    """Ask a host's gateway for a blob; after `at_bytes` received bytes call `then` with the first server's name.

    Raises:
        OSError: if the connection is reset, or silent for 15 s. A response that ends early by FIN is an answer.
    """
    headers = {"Range": f"bytes={offset}-"} if offset else {}
    connection = _dial(host)
    started_at = last_at = time.monotonic()
    try:
        connection.request(method, f"/v2/chaos/blob/blobs/{digest}?ns=reg.test", headers=headers)
        response = connection.getresponse()
        answer = Answer(
            response.status,
            response.headers.get("Stafett-Node", ""),
            response.headers.get("Stafett-Source", ""),
            int(response.headers["Content-Length"]),
            bytearray(),
        )
        answer.first_byte_seconds = time.monotonic() - started_at
        pending = then
        while piece := response.read1(READ_BYTES):
            now = time.monotonic()
            answer.longest_gap_seconds = max(answer.longest_gap_seconds, now - last_at)
            answer.received += piece
            if len(answer.received) >= at_bytes:
                pending(answer.node)
                pending = _nothing
            last_at = time.monotonic()
        answer.seconds = time.monotonic() - started_at
        return answer
    finally:
        connection.close()


def failovers(host: Host, holder: str, digest: Digest) -> list[str]:
    """Why the host's gateway has left a holder of a digest for other ones."""
    assert host.gateway is not None
    events = [json.loads(line) for line in host.gateway.log.read_text().splitlines() if line.startswith("{")]
    left = [event for event in events if event["event"] == "holder_left" and event["digest"] == str(digest)]
    return [event["reason"] for event in left if event["node"] == holder]


def counted(host: Host, name: str) -> float:
    """What the host's gateway has counted, of a counter without labels."""
    connection = _dial(host)
    try:
        connection.request("GET", "/metrics")
        lines = connection.getresponse().read().decode().splitlines()
    finally:
        connection.close()
    return next(float(line.split()[1]) for line in lines if line.startswith(f"{name} "))


def status_of_a_read(host: Host, digest: Digest) -> grpc.StatusCode:
    """Ask a node itself for a blob; tell how it answers."""
    with grpc.insecure_channel(f"127.0.0.1:{host.node_port}", options=[("grpc.enable_http_proxy", 0)]) as channel:
        stub = node_pb2_grpc.BlobServiceStub(channel)
        try:
            next(stub.Read(node_pb2.ReadRequest(digest=str(digest)), timeout=5))
        except grpc.RpcError as error:
            return error.code()
    return grpc.StatusCode.OK


def _dial(host: Host) -> http.client.HTTPConnection:
    connection = http.client.HTTPConnection("127.0.0.1", host.gateway_port)
    connection.sock = connect(host.place, host.gateway_port, SILENCE_SECONDS)
    return connection
