"""A client that pulls one blob, checks its digest, and notes how long it had to wait for a byte."""

from __future__ import annotations

import hashlib
import socket
import threading
import time
from dataclasses import dataclass

from bench.sink import TIMEOUT_SECONDS
from stafett.common.digest import Digest

_RECEIVE_BYTES = 256 * 1024
_HEAD_MAX_BYTES = 64 * 1024
_POLL_SECONDS = 0.005


@dataclass(frozen=True, slots=True)
class Pulled:
    """How a pull ended. `seconds` from connecting to the last byte; `max_gap_seconds` is the longest wait for a byte,
    the wait for the first included. `problem` is empty when all bytes came and are right.
    """

    seconds: float
    max_gap_seconds: float
    size_bytes: int
    wrong_bytes: int
    problem: str


class WatchedPull:
    """A pull in a thread of its own; `node` and `received` tell how far it is."""

    def __init__(self, port: int, path: str, digest: Digest, size_bytes: int) -> None:
        self._port, self._path, self._digest, self._size = port, path, digest, size_bytes
        self._hash = hashlib.sha256()
        self._max_gap = 0.0
        self._started = self._last = time.monotonic()
        self._problem = ""
        self._socket: socket.socket | None = None
        self.received = 0
        self.node = ""
        """Who sent the first byte, as the Stafett-Node header says."""
        self._thread = threading.Thread(target=self._run, name="pull")
        self._thread.start()

    @property
    def running(self) -> bool:
        return self._thread.is_alive()

    def wait_received(self, size_bytes: int) -> bool:
        """Wait until so much has come; False when the pull has ended before."""
        while self.received < size_bytes and self.running:
            time.sleep(_POLL_SECONDS)
        return self.received >= size_bytes

    def hang_up(self) -> None:
        """Leave in the middle."""
        if self._socket is not None:
            self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join()

    def result(self) -> Pulled:
        """Wait for the end."""
        self._thread.join()
        whole = self.received == self._size
        right = self._hash.hexdigest() == self._digest.hex
        problem = self._problem
        if not problem and not whole:
            problem = f"{self.received} of {self._size} bytes"
        elif not problem and not right:
            problem = "wrong digest"
        wrong = self.received if whole and not right else 0
        return Pulled(self._last - self._started, self._max_gap, self.received, wrong, problem)

    def _run(self) -> None:
        request = f"GET {self._path} HTTP/1.1\r\nHost: 127.0.0.1:{self._port}\r\nConnection: close\r\n\r\n"
        try:
            with socket.create_connection(("127.0.0.1", self._port), timeout=TIMEOUT_SECONDS) as connection:
                self._socket = connection
                connection.sendall(request.encode("ascii"))
                self._take(self._read_head(connection))
                while self.received < self._size and (piece := connection.recv(_RECEIVE_BYTES)):
                    self._take(piece)
        except OSError as error:
            self._problem = f"{type(error).__name__}: {error}"

    def _take(self, piece: bytes) -> None:
        now = time.monotonic()
        if piece:
            self._max_gap = max(self._max_gap, now - self._last)
            self._last = now
            self._hash.update(piece)
            self.received += len(piece)

    def _read_head(self, connection: socket.socket) -> bytes:
        """Return the first bytes of the body; none, and a problem, when the status is not 200."""
        received = b""
        while b"\r\n\r\n" not in received and len(received) < _HEAD_MAX_BYTES:
            piece = connection.recv(_RECEIVE_BYTES)
            if not piece:
                break
            received += piece
        head, _, body = received.partition(b"\r\n\r\n")
        status, *lines = head.decode("latin-1").split("\r\n")
        if status.split(" ")[1:2] != ["200"]:
            self._problem = status or "no response"
            connection.shutdown(socket.SHUT_RD)
            return b""
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        self.node = headers.get("stafett-node", "")
        return body
