"""The proxy misbehaves as ordered: the chaos tests believe it."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from stafett.cli.local_cluster.processes import free_port
from tests.chaos.tcp_proxy import TcpProxy, Way

BODY = os.urandom(2_000_000)
SILENCE_SECONDS = 0.3


class EchoServer:
    """Echoes each connection; `heard` is all that ever came in."""

    def __init__(self) -> None:
        self.heard = b""
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=self._echo, args=(self._listener.accept()[0],), daemon=True).start()

    def _echo(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            while piece := connection.recv(65536):
                self.heard += piece
                connection.sendall(piece)


@pytest.fixture
def server() -> Iterator[EchoServer]:
    echo = EchoServer()
    yield echo
    echo.close()


@pytest.fixture
def proxy(server: EchoServer) -> Iterator[TcpProxy]:
    with TcpProxy(server.port) as proxy:
        yield proxy


@contextlib.contextmanager
def connect(proxy: TcpProxy) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=10) as connection:
        yield connection


def echoed(connection: socket.socket, content: bytes) -> bytes:
    """Send all of it while reading; return what came back until as much has come, or the end."""
    sender = threading.Thread(target=lambda: connection.sendall(content))
    sender.start()
    received = read(connection, len(content))
    sender.join()
    return received


def read(connection: socket.socket, size_bytes: int) -> bytes:
    received = b""
    while len(received) < size_bytes and (piece := connection.recv(size_bytes - len(received))):
        received += piece
    return received


def send_until_cut(connection: socket.socket) -> tuple[bytes, OSError | None]:
    """Send the body while reading to the end; return what came and how it ended."""

    def send() -> None:
        with contextlib.suppress(OSError):
            connection.sendall(BODY)

    sender = threading.Thread(target=send)
    sender.start()
    received = b""
    try:
        while piece := connection.recv(65536):
            received += piece
        return received, None
    except OSError as error:
        return received, error
    finally:
        sender.join()


def is_silent(connection: socket.socket) -> bool:
    connection.settimeout(SILENCE_SECONDS)
    try:
        connection.recv(1)
    except TimeoutError:
        return True
    else:
        return False
    finally:
        connection.settimeout(10)


def test_it_passes_bytes_and_the_end_in_both_directions(proxy: TcpProxy) -> None:
    with connect(proxy) as connection:
        assert echoed(connection, BODY) == BODY
        connection.shutdown(socket.SHUT_WR)
        assert connection.recv(1) == b""
    assert proxy.passed_bytes == {Way.UP: len(BODY), Way.DOWN: len(BODY)}


def test_refusing_resets_old_connections_and_refuses_new_ones_until_it_passes_again(proxy: TcpProxy) -> None:
    with connect(proxy) as old:
        assert echoed(old, b"hello") == b"hello"
        proxy.refuse()
        with pytest.raises(ConnectionResetError):
            old.recv(1)
        with pytest.raises(ConnectionRefusedError), connect(proxy):
            pass
    proxy.pass_()
    with connect(proxy) as new:
        assert echoed(new, b"again") == b"again"


def test_refusing_new_connections_only_leaves_the_old_ones(proxy: TcpProxy) -> None:
    with connect(proxy) as old:
        assert echoed(old, b"hello") == b"hello"
        proxy.refuse(live_too=False)
        with pytest.raises(ConnectionRefusedError), connect(proxy):
            pass
        assert echoed(old, b"still here") == b"still here"


def test_a_dead_server_means_a_reset_and_is_counted() -> None:
    with TcpProxy(free_port()) as proxy:
        with pytest.raises(ConnectionResetError), connect(proxy) as connection:  # at once, or at the first read
            connection.recv(1)
        assert proxy.unreachable == proxy.accepted == 1


def test_frozen_connections_stay_open_and_go_on_without_loss(proxy: TcpProxy) -> None:
    with connect(proxy) as old:
        assert echoed(old, b"hello") == b"hello"
        proxy.freeze()
        with connect(proxy) as new:
            for connection in (old, new):
                connection.sendall(b"anybody?")
                assert is_silent(connection)
            proxy.pass_()
            for connection in (old, new):
                assert read(connection, 8) == b"anybody?"


def test_one_direction_can_be_frozen_alone(proxy: TcpProxy, server: EchoServer) -> None:
    with connect(proxy) as connection:
        proxy.freeze(Way.DOWN)
        connection.sendall(b"anybody?")
        assert is_silent(connection)
        assert server.heard == b"anybody?"


def test_slowness_holds_for_all_connections_together_and_ends(proxy: TcpProxy) -> None:
    size = 100_000
    proxy.slow(2 * size)
    with connect(proxy) as first, connect(proxy) as second:
        started = time.monotonic()
        for connection in (first, second):
            connection.sendall(BODY[:size])
        for connection in (first, second):
            assert read(connection, size) == BODY[:size]
        assert time.monotonic() - started > 0.8, "two connections share what one may have"
        proxy.pass_()
        started = time.monotonic()
        assert echoed(first, BODY) == BODY
        assert time.monotonic() - started < 8, "at the slow rate it would be 10 s"


@pytest.mark.parametrize("reset", [True, False])
def test_a_cut_comes_after_so_many_bytes(proxy: TcpProxy, reset: bool) -> None:
    with connect(proxy) as connection:
        assert echoed(connection, b"hello") == b"hello"
        proxy.cut(after_bytes=300_000, reset=reset)
        received, error = send_until_cut(connection)
        assert received == BODY[: len(received)]
        if reset:
            assert isinstance(error, ConnectionResetError)
            assert len(received) <= 300_000, "a reset may overtake bytes"
        else:
            assert len(received) == 300_000
    with connect(proxy) as new:
        assert echoed(new, BODY) == BODY


def test_a_black_hole_is_silent_and_what_it_swallowed_is_never_made_up_for(proxy: TcpProxy, server: EchoServer) -> None:
    with connect(proxy) as connection:
        proxy.swallow(after_bytes=10)
        connection.sendall(BODY[:1000])
        assert read(connection, 10) == BODY[:10]
        assert is_silent(connection)
        assert server.heard == BODY[:10]
        proxy.pass_()
        with pytest.raises(ConnectionResetError):
            connection.recv(1)
    with connect(proxy) as new:
        assert echoed(new, BODY) == BODY


def test_corruption_changes_some_large_pieces_and_no_small_ones(proxy: TcpProxy) -> None:
    proxy.corrupt(every_bytes=500_000)
    with connect(proxy) as connection:
        received = echoed(connection, BODY)
        wrong = [at for at in range(len(BODY)) if received[at] != BODY[at]]
        assert len(wrong) == proxy.flipped
        assert 1 <= len(wrong) <= 4
        for _ in range(20):
            assert echoed(connection, b"small") == b"small"


def test_a_tap_sees_who_sends_what(server: EchoServer) -> None:
    seen: dict[int, bytes] = {}

    def tap(port: int) -> Callable[[bytes], None]:
        seen[port] = b""

        def show(piece: bytes) -> None:
            seen[port] += piece

        return show

    with TcpProxy(server.port, tap=tap) as proxy, connect(proxy) as connection:
        assert echoed(connection, b"hello") == b"hello"
        assert seen == {connection.getsockname()[1]: b"hello"}


def test_it_leaves_no_connection_and_no_thread_behind(server: EchoServer) -> None:
    with TcpProxy(server.port) as proxy, connect(proxy) as connection:
        assert echoed(connection, b"hello") == b"hello"
        assert proxy.connections == 1
    assert proxy.connections == 0
    assert not any(thread.name == "tcp-proxy" for thread in threading.enumerate())
