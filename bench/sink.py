"""The reader at the end of every measured transfer.

It receives with MSG_TRUNC, which lets Linux drop the bytes without copying them, so that the figure is the sender's and
not the reader's. It checks status and length, never the content.
"""

from __future__ import annotations

import socket
import time
from dataclasses import dataclass

TIMEOUT_SECONDS = 60.0
_HEADERS_MAX_BYTES = 64 * 1024
_RECEIVE_BYTES = 4 * 1024 * 1024


class TransferFailed(Exception):
    """A measured transfer went wrong; its figure would mean nothing."""


@dataclass(frozen=True, slots=True)
class Transfer:
    """One finished transfer; `seconds` from connecting to the last byte."""

    size_bytes: int
    seconds: float

    @property
    def bytes_per_second(self) -> float:
        return self.size_bytes / self.seconds


def fetch(port: int, path: str) -> Transfer:
    """GET a path from a server on loopback and drop the body.

    Raises:
        TransferFailed: if the status is not 200 or the body's length is not its Content-Length.
    """
    request = f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n\r\n"
    started = time.perf_counter()
    with socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT_SECONDS) as connection:
        connection.sendall(request.encode("ascii"))
        expected, received = _read_headers(connection)
        received += _discard(connection, expected - received)
    seconds = time.perf_counter() - started
    if received != expected:
        raise TransferFailed(f"port {port}: {received} of {expected} bytes")
    return Transfer(received, seconds)


def answers(port: int, path: str) -> bool:
    """Tell whether a HEAD request for the path succeeds."""
    request = f"HEAD {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n\r\n"
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT_SECONDS) as connection:
            connection.sendall(request.encode("ascii"))
            _read_headers(connection)
    except (TransferFailed, OSError):
        return False
    return True


def _read_headers(connection: socket.socket) -> tuple[int, int]:
    """Return the Content-Length, and the number of body bytes that came along with the headers."""
    received = b""
    while b"\r\n\r\n" not in received:
        piece = connection.recv(_HEADERS_MAX_BYTES)
        if not piece or len(received) > _HEADERS_MAX_BYTES:
            raise TransferFailed(f"no HTTP response: {received[:200]!r}")
        received += piece
    head, _, body = received.partition(b"\r\n\r\n")
    status, *lines = head.decode("latin-1").split("\r\n")
    if status.split()[1] != "200":
        raise TransferFailed(f"{status}: {body[:200]!r}")
    headers = {name.lower(): value for name, _, value in (line.partition(":") for line in lines)}
    return int(headers["content-length"]), len(body)


def _discard(connection: socket.socket, wanted: int) -> int:
    unused = bytearray(_RECEIVE_BYTES)  # never written: MSG_TRUNC only looks at the length
    received = 0
    while received < wanted:
        count = connection.recv_into(unused, min(_RECEIVE_BYTES, wanted - received), socket.MSG_TRUNC)
        if count == 0:
            break
        received += count
    return received
