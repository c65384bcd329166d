"""The failover benchmark's own instruments: a wrong figure would be worse than none."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest

from bench.failover_bed import StreamCounter
from bench.watched_pull import WatchedPull
from stafett.common.digest import Digest

BODY = bytes(range(256)) * 4096
PAUSE_SECONDS = 0.4


@contextmanager
def server(pieces: Sequence[bytes]) -> Iterator[int]:
    """Serve one connection with these bytes, pausing between the pieces; gives the port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                for number, piece in enumerate(pieces):
                    time.sleep(PAUSE_SECONDS if number else 0)
                    connection.sendall(piece)

        thread = threading.Thread(target=serve)
        thread.start()
        yield listener.getsockname()[1]
        thread.join()


def pull(port: int) -> WatchedPull:
    return WatchedPull(port, "/", Digest.of(BODY), len(BODY))


HEAD = f"HTTP/1.1 200 OK\r\nContent-Length: {len(BODY)}\r\nStafett-Node: h2\r\n\r\n".encode()


def test_a_whole_right_body_has_no_problem_and_tells_its_holder() -> None:
    with server([HEAD + BODY]) as port:
        pulling = pull(port)
        pulled = pulling.result()
    assert (pulled.problem, pulled.size_bytes, pulled.wrong_bytes) == ("", len(BODY), 0)
    assert pulling.node == "h2"


@pytest.mark.parametrize("at", [0, len(BODY) // 2], ids=["before the first byte", "in the middle"])
def test_the_longest_wait_for_a_byte_is_seen(at: int) -> None:
    with server([HEAD + BODY[:at], BODY[at:]]) as port:
        pulled = pull(port).result()
    assert not pulled.problem
    assert PAUSE_SECONDS * 0.9 < pulled.max_gap_seconds <= pulled.seconds


def test_a_short_body_is_a_problem_but_not_wrong_bytes() -> None:
    with server([HEAD + BODY[:-1]]) as port:
        pulled = pull(port).result()
    assert f"{len(BODY) - 1} of {len(BODY)}" in pulled.problem
    assert pulled.wrong_bytes == 0


def test_a_whole_wrong_body_is_wrong_bytes() -> None:
    with server([HEAD + BODY[:-1] + b"?"]) as port:
        pulled = pull(port).result()
    assert pulled.problem == "wrong digest"
    assert pulled.wrong_bytes == len(BODY)


def test_another_status_than_200_is_a_problem() -> None:
    with server([b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"]) as port:
        pulled = pull(port).result()
    assert "404" in pulled.problem


def test_hanging_up_ends_a_pull_that_waits() -> None:
    with server([HEAD + BODY[:10], BODY[10:20]]) as port:
        pulling = pull(port)
        assert pulling.wait_received(10)
        pulling.hang_up()
        assert not pulling.running


@pytest.mark.parametrize("piece_bytes", [1, 7, 1000])
def test_streams_are_counted_however_the_bytes_are_split(piece_bytes: int) -> None:
    def frame(kind: int, length: int) -> bytes:
        return length.to_bytes(3, "big") + bytes([kind, 0, 0, 0, 0, 1]) + b"\x01" * length

    sent = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 12) + frame(1, 90) + frame(0, 40) + frame(1, 0) + frame(8, 4)
    opened: list[None] = []
    counter = StreamCounter(lambda: opened.append(None))
    for start in range(0, len(sent), piece_bytes):
        counter(sent[start : start + piece_bytes])
    assert len(opened) == 2
