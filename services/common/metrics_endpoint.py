"""The Prometheus endpoint of a part: GET /metrics, nothing else.

It has threads of its own, so that no stream waits for a scrape. A few connections at once, each for a few seconds; more
are closed.
"""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from socketserver import TCPServer, ThreadingMixIn
from threading import BoundedSemaphore, Thread

import structlog
from prometheus_client import CollectorRegistry, MetricsHandler

from stafett.common.cluster import Address
from stafett.common.errors import StartupFailed

log = structlog.get_logger()

CONNECTIONS_MAX = 8
REQUEST_SECONDS = 5.0
_STOP_POLL_SECONDS = 0.1


@asynccontextmanager
async def metrics_endpoint(registry: CollectorRegistry, address: Address) -> AsyncIterator[int]:
    """Serve a registry until left; gives the port (port 0 picks a free one).

    Raises:
        StartupFailed: if the port is taken.
    """
    try:
        server = _Server(registry, address)
    except OSError as error:
        raise StartupFailed(
            f"cannot serve metrics on {address.target()}: {error.strerror}; choose another metrics host or port"
        ) from error
    thread = Thread(target=server.serve_forever, args=(_STOP_POLL_SECONDS,), name="metrics", daemon=True)
    thread.start()
    try:
        yield int(server.server_address[1])
    finally:
        await asyncio.to_thread(server.shutdown)
        server.server_close()


class _Handler(MetricsHandler):
    timeout = REQUEST_SECONDS

    def do_GET(self) -> None:  # noqa: N802
        if self.path.partition("?")[0] == "/metrics":
            super().do_GET()
        else:
            self.send_error(404)

    def version_string(self) -> str:
        return "stafett"


class _Server(ThreadingMixIn, TCPServer):
    allow_reuse_address = True
    daemon_threads = True

    def __init__(self, registry: CollectorRegistry, address: Address) -> None:
        self.address_family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
        self._free = BoundedSemaphore(CONNECTIONS_MAX)
        super().__init__((address.host, address.port), _Handler.factory(registry))

    def process_request(self, request: socket.socket, client_address: object) -> None:  # type: ignore[override]
        if self._free.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: socket.socket, client_address: object) -> None:  # type: ignore[override]
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: object, client_address: object) -> None:
        error = sys.exception()
        log.info("scrape_failed", reason=str(error), exc_info=None if isinstance(error, OSError) else error)
