"""A TCP proxy on loopback that misbehaves on demand: stands in front of a node, or between a node and a tracker.

It refuses, freezes, slows, cuts, swallows and corrupts, for connections that live and for new ones, until it is told to
`pass_` again. It runs in a thread of its own; every method may be called from any thread and has happened when it
returns. It knows no protocol; `tap` shows a caller what clients send.

What it cannot do: drop packets. Bytes that it has received are acknowledged, and while it freezes or swallows, new
connections are still accepted. A frozen sender feels back-pressure, one whose bytes are swallowed does not.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from enum import Enum
from types import TracebackType
from typing import Any, TypeVar

PIECE_BYTES = 64 * 1024
CORRUPT_MIN_BYTES = 8 * 1024
"""Smaller pieces are never corrupted: they are settings, headers, pings, short messages."""
CALL_SECONDS = 10.0
_SLICES_PER_SECOND = 20
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)

Tap = Callable[[int], Callable[[bytes], None] | None]
"""Called for each new connection with the client's port; what it returns is shown each piece that the client sends."""
T = TypeVar("T")


class Way(Enum):
    """A direction."""

    UP = "client to server"
    DOWN = "server to client"


BOTH = (Way.UP, Way.DOWN)


@dataclass
class _Conduct:
    """How one direction is treated now, for all connections together."""

    flowing: asyncio.Event = field(default_factory=asyncio.Event)
    swallow_after: int | None = None
    bytes_per_second: float | None = None
    free_at: float = 0.0
    flip_every: int | None = None
    until_flip: int = 0


@dataclass(eq=False)
class _Link:
    """One connection through the proxy."""

    client: socket.socket
    server: socket.socket
    cut_after: dict[Way, int] = field(default_factory=dict)
    damaged: bool = False
    pumps: list[asyncio.Task[None]] = field(default_factory=list)

    def close(self, *, reset: bool) -> None:
        """End the pumps; the sockets are closed when the event loop has let go of them."""
        for pump in self.pumps:
            pump.cancel()
        for end in (self.client, self.server):
            asyncio.get_running_loop().call_soon(_close, end, reset)


class TcpProxy:
    """Forwards a port of its own on 127.0.0.1 to `target_port` there. A context manager; starts by passing."""

    def __init__(self, target_port: int, *, tap: Tap | None = None) -> None:
        self._target_port = target_port
        self._tap = tap
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="tcp-proxy", daemon=True)
        self._links: set[_Link] = set()
        self._conduct: dict[Way, _Conduct] = {}
        self._acceptor: asyncio.Task[None] | None = None
        self._connecting: set[asyncio.Task[None]] = set()
        self._cut_resets = True
        self._placeholder = socket.socket()  # bound but not listening: keeps the port while connections are refused
        self._placeholder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._placeholder.bind(("127.0.0.1", 0))
        self.port = int(self._placeholder.getsockname()[1])
        self.accepted = 0
        """Connections accepted so far."""
        self.unreachable = 0
        """Of these, the ones that the server refused; the client gets a reset."""
        self.flipped = 0
        """Bytes corrupted so far."""
        self.passed_bytes = {Way.UP: 0, Way.DOWN: 0}

    def __enter__(self) -> TcpProxy:
        self._thread.start()
        self._call(self._set_right())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._call(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(CALL_SECONDS)
        self._loop.close()
        self._placeholder.close()

    @property
    def connections(self) -> int:
        """Connections through it now."""
        return len(self._links)

    def pass_(self) -> None:
        """Behave from now on. Connections that have lost bytes are reset, frozen ones go on where they stood."""
        self._call(self._set_right())

    def refuse(self, *, live_too: bool = True) -> None:
        """Refuse new connections (nobody listens); with `live_too` reset those that exist."""
        self._call(self._refuse(live_too))

    def freeze(self, *ways: Way) -> None:
        """Forward nothing more in these directions (none named: both); keep all sockets open and accept new ones."""
        self._call(self._change(ways or BOTH, lambda conduct: conduct.flowing.clear()))

    def slow(self, bytes_per_second: float, *ways: Way) -> None:
        """Forward so much at most in each of these directions (none named: to the client), all connections together."""
        self._call(
            self._change(ways or (Way.DOWN,), lambda conduct: setattr(conduct, "bytes_per_second", bytes_per_second))
        )

    def cut(self, after_bytes: int = 0, way: Way = Way.DOWN, *, reset: bool = True) -> None:
        """Close each connection of now, both ends, when so many more bytes have passed; `reset`: RST, else FIN."""
        self._call(self._cut(after_bytes, way, reset))

    def swallow(self, *ways: Way, after_bytes: int = 0) -> None:
        """Be a black hole in these directions (none named: both): read and forget, after so many more bytes of each."""
        self._call(self._change(ways or BOTH, lambda conduct: setattr(conduct, "swallow_after", after_bytes)))

    def corrupt(self, every_bytes: int = 1024 * 1024) -> None:
        """Flip all bits of one byte in each `every_bytes` sent to clients, in the middle of a large piece.

        In a stream of gRPC messages of 1 MiB, sent as HTTP/2 frames of 16 KiB, a flipped byte is one of content in
        more than 99.9 % of the cases: 9 bytes of 16,393 are a frame's header, and 9 of a MiB a message's. Those few
        break the connection instead of lying.
        """

        def start(conduct: _Conduct) -> None:
            conduct.flip_every, conduct.until_flip = every_bytes, 0

        self._call(self._change((Way.DOWN,), start))

    def _call(self, work: Coroutine[Any, Any, T]) -> T:
        async def done() -> T:
            result = await work
            await asyncio.sleep(0)  # what was closed is closed now
            return result

        return asyncio.run_coroutine_threadsafe(done(), self._loop).result(CALL_SECONDS)

    async def _change(self, ways: tuple[Way, ...], change: Callable[[_Conduct], None]) -> None:
        for way in ways:
            change(self._conduct[way])

    async def _set_right(self) -> None:
        for link in [link for link in self._links if link.damaged]:
            self._drop(link, reset=True)
        for link in self._links:
            link.cut_after.clear()
        for way in Way:
            old, self._conduct[way] = self._conduct.get(way), _Conduct()
            self._conduct[way].flowing.set()
            if old is not None:
                old.flowing.set()
        if self._acceptor is None:
            listener = socket.socket()
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(("127.0.0.1", self.port))
            listener.listen(128)
            listener.setblocking(False)
            self._acceptor = self._loop.create_task(self._accept(listener))

    async def _refuse(self, live_too: bool) -> None:
        await self._stop_accepting()
        if live_too:
            self._drop_all(reset=True)

    async def _cut(self, after_bytes: int, way: Way, reset: bool) -> None:
        self._cut_resets = reset
        if after_bytes == 0:
            self._drop_all(reset=reset)
        for link in self._links:
            link.cut_after[way] = after_bytes

    async def _end(self) -> None:
        await self._stop_accepting()
        ending = [*self._connecting, *(pump for link in self._links for pump in link.pumps)]
        for connecting in self._connecting:
            connecting.cancel()
        self._drop_all(reset=True)
        await asyncio.gather(*ending, return_exceptions=True)

    async def _stop_accepting(self) -> None:
        if self._acceptor is not None:
            self._acceptor.cancel()
            await asyncio.gather(self._acceptor, return_exceptions=True)
            self._acceptor = None

    def _drop_all(self, *, reset: bool) -> None:
        for link in list(self._links):
            self._drop(link, reset=reset)

    def _drop(self, link: _Link, *, reset: bool) -> None:
        self._links.discard(link)
        link.close(reset=reset)

    async def _accept(self, listener: socket.socket) -> None:
        with listener:
            while True:
                client, _ = await self._loop.sock_accept(listener)
                self.accepted += 1
                connecting = self._loop.create_task(self._connect(client))
                self._connecting.add(connecting)
                connecting.add_done_callback(self._connecting.discard)

    async def _connect(self, client: socket.socket) -> None:
        show = self._tap(client.getpeername()[1]) if self._tap else None
        server = socket.socket()
        for end in (client, server):
            end.setblocking(False)
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            async with asyncio.timeout(CALL_SECONDS):
                await self._loop.sock_connect(server, ("127.0.0.1", self._target_port))
        except (OSError, TimeoutError):
            self.unreachable += 1
            _close(server, False)
            _close(client, True)
            return
        except asyncio.CancelledError:
            _close(server, False)
            _close(client, True)
            raise
        link = _Link(client, server)
        self._links.add(link)
        link.pumps = [
            self._loop.create_task(self._pump(link, Way.UP, client, server, show)),
            self._loop.create_task(self._pump(link, Way.DOWN, server, client, None)),
        ]

    async def _pump(
        self,
        link: _Link,
        way: Way,
        source: socket.socket,
        sink: socket.socket,
        show: Callable[[bytes], None] | None,
    ) -> None:
        try:
            while piece := await self._loop.sock_recv(source, PIECE_BYTES):
                if show is not None:
                    show(piece)
                await self._forward(link, way, piece, sink)
            await self._conduct[way].flowing.wait()
            if self._conduct[way].swallow_after is None:
                sink.shutdown(socket.SHUT_WR)
        except OSError:
            self._drop(link, reset=True)
            return
        if all(pump.done() or pump is asyncio.current_task() for pump in link.pumps):
            self._drop(link, reset=False)

    async def _forward(self, link: _Link, way: Way, piece: bytes, sink: socket.socket) -> None:
        """Send one piece in the way that is in force at each of its bytes."""
        while piece:
            conduct = self._conduct[way]
            await conduct.flowing.wait()
            if conduct is not self._conduct[way]:
                continue
            part = piece[: self._allowed(link, way)]
            if not part:
                link.damaged = True
                return
            piece = piece[len(part) :]
            if conduct.bytes_per_second is not None:
                await _pace(conduct, len(part))
            await self._loop.sock_sendall(sink, self._maybe_flip(conduct, part))
            self._count(link, way, conduct, len(part))

    def _allowed(self, link: _Link, way: Way) -> int:
        """How much may go out in one send; 0 when the bytes are to be forgotten."""
        conduct = self._conduct[way]
        allowed = PIECE_BYTES
        if conduct.bytes_per_second is not None:
            allowed = max(1, min(allowed, int(conduct.bytes_per_second / _SLICES_PER_SECOND)))
        if conduct.swallow_after is not None:
            allowed = min(allowed, conduct.swallow_after)
        return min(allowed, link.cut_after.get(way, allowed))

    def _maybe_flip(self, conduct: _Conduct, part: bytes) -> bytes:
        if conduct.flip_every is None:
            return part
        conduct.until_flip -= len(part)
        if conduct.until_flip > 0 or len(part) < CORRUPT_MIN_BYTES:
            return part
        conduct.until_flip = conduct.flip_every
        self.flipped += 1
        changed = bytearray(part)
        changed[len(changed) // 2] ^= 0xFF
        return bytes(changed)

    def _count(self, link: _Link, way: Way, conduct: _Conduct, size_bytes: int) -> None:
        self.passed_bytes[way] += size_bytes
        if conduct.swallow_after is not None:
            conduct.swallow_after = max(0, conduct.swallow_after - size_bytes)
        if way in link.cut_after:
            link.cut_after[way] -= size_bytes
            if link.cut_after[way] <= 0:
                self._drop(link, reset=self._cut_resets)


async def _pace(conduct: _Conduct, size_bytes: int) -> None:
    assert conduct.bytes_per_second is not None
    now = time.monotonic()
    conduct.free_at = max(conduct.free_at, now) + size_bytes / conduct.bytes_per_second
    await asyncio.sleep(conduct.free_at - now)


def _close(end: socket.socket, reset: bool) -> None:
    if reset:
        with contextlib.suppress(OSError):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
    end.close()
