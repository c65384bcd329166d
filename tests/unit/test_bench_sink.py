"""The benchmark's sink: a figure only comes out of a whole, successful transfer."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from bench.sink import TransferFailed, answers, fetch

BODY_BYTES = 3_000_000


@contextmanager
def server(response: bytes) -> Iterator[int]:
    """Serve one connection with fixed bytes; gives the port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(response)

        thread = threading.Thread(target=serve)
        thread.start()
        yield listener.getsockname()[1]
        thread.join()


def response(status: str, stated_bytes: int, body_bytes: int) -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Length: {stated_bytes}\r\n\r\n".encode() + bytes(body_bytes)


def test_a_whole_body_is_counted() -> None:
    with server(response("200 OK", BODY_BYTES, BODY_BYTES)) as port:
        assert fetch(port, "/").size_bytes == BODY_BYTES


def test_a_body_that_ends_early_gives_no_figure() -> None:
    with server(response("200 OK", BODY_BYTES, BODY_BYTES - 1)) as port, pytest.raises(TransferFailed):
        fetch(port, "/")


def test_an_error_response_gives_no_figure() -> None:
    with server(response("404 Not Found", 10, 10)) as port, pytest.raises(TransferFailed, match="404"):
        fetch(port, "/")


def test_a_refused_head_request_is_no_answer() -> None:
    with server(response("404 Not Found", 0, 0)) as port:
        assert not answers(port, "/")
