"""One HTTP exchange with a client: status, headers and body as plain ASGI messages.

Bodies go out piece by piece, the client's pace deciding when the next one is fetched. A response that cannot go on is
left unfinished, and the server ends the connection with FIN, after which containerd asks for the rest.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from enum import Enum

from starlette.types import Receive, Send

from stafett.common.errors import BlobUnknown, CorruptContent, Unavailable
from stafett.gateway import pull_trace

JSON = "application/json"
MISS = "miss"
"""Source of an answer without content, as metrics call it."""


class Outcome(Enum):
    """How an exchange ended, decided when its last byte was sent."""

    HIT = "hit"
    MISS = "miss"
    TRUNCATED = "truncated"
    CLIENT_GONE = "client_gone"
    REFUSED = "refused"


class Exchange:
    """The answer to one request."""

    def __init__(self, method: str, receive: Receive, send: Send) -> None:
        self._head = method == "HEAD"
        self._receive = receive
        self._send = send
        self._opened_at = time.monotonic()
        self.first_byte_seconds: float | None = None
        """How long the client waited until its answer began; None before."""
        self.source = MISS
        """Where the last bytes came from, as metrics call it."""

    @property
    def started(self) -> bool:
        """Whether the answer has begun."""
        return self.first_byte_seconds is not None

    async def start(self, status: int, headers: Mapping[str, str]) -> None:
        """Send status and headers."""
        self.first_byte_seconds = time.monotonic() - self._opened_at
        sent = pull_trace.answered(status, headers)
        raw = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in sent.items()]
        await self._send({"type": "http.response.start", "status": status, "headers": raw})

    async def whole(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        """Send a complete answer; to a HEAD without its body."""
        await self.start(status, {"Content-Length": str(len(body)), **headers})
        await self._finish(b"" if self._head else body)

    async def finish_head(self, status: int, headers: Mapping[str, str]) -> None:
        """Send the headers of an answer whose body was not asked for."""
        await self.start(status, headers)
        await self._finish(b"")

    async def stream(
        self, first: memoryview | None, rest: AsyncGenerator[memoryview, None], sent: Callable[[int], None]
    ) -> Outcome:
        """Send the body after `start`: the first piece, then the rest; `sent` hears the size of each."""
        async with asyncio.TaskGroup() as group:
            body = group.create_task(self._send_pieces(first, rest, sent))
            watcher = group.create_task(self._watch_client(body))
            await asyncio.wait([body])
            watcher.cancel()
        return Outcome.CLIENT_GONE if body.cancelled() else body.result()

    async def _send_pieces(
        self, first: memoryview | None, rest: AsyncGenerator[memoryview, None], sent: Callable[[int], None]
    ) -> Outcome:
        try:
            if first is not None:
                await self._piece(first, sent)
                async for piece in rest:
                    await self._piece(piece, sent)
        except (BlobUnknown, CorruptContent, Unavailable, OSError):
            return Outcome.TRUNCATED
        finally:
            await rest.aclose()
        await self._finish(b"")
        return Outcome.HIT

    async def _piece(self, piece: memoryview, sent: Callable[[int], None]) -> None:
        await self._send({"type": "http.response.body", "body": piece, "more_body": True})
        sent(len(piece))

    async def _finish(self, body: bytes) -> None:
        await self._send({"type": "http.response.body", "body": body, "more_body": False})

    async def _watch_client(self, body: asyncio.Task[Outcome]) -> None:
        """Stop the body when the client hangs up, which containerd does as a matter of course."""
        while (await self._receive())["type"] != "http.disconnect":
            pass
        body.cancel()
