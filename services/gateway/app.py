"""Builds a gateway from its parts and runs it: the composition root."""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import structlog
import uvicorn
from starlette.applications import Starlette
from starlette.types import ASGIApp

from stafett.common.errors import StartupFailed
from stafett.common.grpc_transport import tracker_channel
from stafett.common.metrics_endpoint import metrics_endpoint
from stafett.common.service import run_service
from stafett.gateway.content import Content
from stafett.gateway.expectations import Expectations
from stafett.gateway.grpc_peer import GrpcPeers, OwnNode
from stafett.gateway.grpc_tracker import GrpcTracker
from stafett.gateway.locator import Locator
from stafett.gateway.manifests import Manifests
from stafett.gateway.metrics import GatewayMetrics
from stafett.gateway.outcomes import Outcomes
from stafett.gateway.own_content import OwnContent
from stafett.gateway.quarantine import Quarantine
from stafett.gateway.relay import Relay
from stafett.gateway.routes import build_routes
from stafett.gateway.seats import Seats
from stafett.gateway.selection import ALGORITHMS, Asking
from stafett.gateway.settings import GatewaySettings
from stafett.gateway.sourcing import Sourcing
from stafett.gateway.state_metrics import StateCollector
from stafett.gateway.tags import Port, Tags
from stafett.gateway.upstream_probe import UpstreamProbe

log = structlog.get_logger()

KEEP_ALIVE_SECONDS = 75
"""Longer than containerd keeps idle connections (30 s), so that it is the client who closes them."""
DISK_THREADS = 16
LOOPBACKS = ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1"))


def main(arguments: list[str]) -> int:
    """Run `stafett gateway`; return the exit code."""
    return run_service("gateway", GatewaySettings, arguments, serve)


async def serve(settings: GatewaySettings, stopping: asyncio.Event) -> None:
    """Run a gateway until told to stop; running responses get `stop_grace_seconds`.

    Raises:
        StartupFailed: if a port is taken.
    """
    mirror = _listen(settings.listen_port)
    tags = _listen(settings.tag_port)
    ports = {_port_of(mirror): Port.MIRROR, _port_of(tags): Port.TAGS}
    async with asyncio.TaskGroup() as group:
        background = group.create_task(_run(settings, ports, [*mirror, *tags], stopping))
        await background


async def _run(
    settings: GatewaySettings, ports: Mapping[int, Port], sockets: list[socket.socket], stopping: asyncio.Event
) -> None:
    asking = Asking(settings.node_id, settings.topology)
    channel = tracker_channel(settings.tracker, settings.tls)
    tracker = GrpcTracker(channel, asking)
    peers = GrpcPeers(settings.tls, node_id=settings.node_id)
    own_node = OwnNode(settings.node_address, settings.tls)
    probe = UpstreamProbe(settings.upstream_urls, settings.upstream_proxy)
    expectations = Expectations(own_node)
    metrics = GatewayMetrics()
    try:
        async with asyncio.TaskGroup() as group:
            outcomes = Outcomes(tracker)
            relay = Relay(
                Locator(tracker, group),
                peers,
                ALGORITHMS[settings.selection],
                asking,
                Quarantine(),
                settings.stall_timeout_seconds,
                metrics,
                outcomes,
                random.Random(),
            )
            root = Path(settings.content_root) if settings.content_root else None
            disk = ThreadPoolExecutor(DISK_THREADS, thread_name_prefix="disk")
            own = OwnContent(own_node, settings.node_id, root, peers, disk)
            seats = Seats(tracker, own_node, group, metrics)
            sourcing = Sourcing(relay, seats, follow=settings.follow)
            content = Content(
                settings,
                own,
                relay,
                sourcing,
                Manifests(own, relay, sourcing),
                Tags(tracker, probe, peers_first=settings.tags == "peers"),
                expectations,
                metrics,
                ports,
            )
            endless = [
                group.create_task(work)
                for work in (tracker.watch(relay.book.nodes), expectations.run(), outcomes.run())
            ]
            log.info("listening", ports={port.value: number for number, port in ports.items()})
            app = Starlette(routes=build_routes(content, relay, own_node, metrics))
            metrics.registry.register(StateCollector(tracker, relay, seats, content))
            async with metrics_endpoint(metrics.registry, settings.metrics_address):
                await _serve_http(app, sockets, settings.stop_grace_seconds, stopping)
            seats.stop()
            for task in endless:
                task.cancel()
    finally:
        await probe.close()
        await own_node.close()
        await peers.close()
        await channel.close()


class _Server(uvicorn.Server):
    """uvicorn without its own signal handling, which `common.service` does."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def _serve_http(app: ASGIApp, sockets: list[socket.socket], grace_seconds: int, stopping: asyncio.Event) -> None:
    config = uvicorn.Config(
        app,
        http="httptools",
        ws="none",
        lifespan="off",
        log_config=None,
        # uvicorn reports unfinished responses as errors; here they are a normal way to end (see exchange).
        log_level="critical",
        access_log=False,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=grace_seconds,
    )
    server = _Server(config)

    async def stop() -> None:
        await stopping.wait()
        server.should_exit = True

    async with asyncio.TaskGroup() as group:
        stopper = group.create_task(stop())
        await server.serve(sockets)
        stopper.cancel()


def _listen(port: int) -> list[socket.socket]:
    """Listen on both loopback addresses, IPv6 only where the host has it."""
    sockets: list[socket.socket] = []
    for family, host in LOOPBACKS:
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port or (_port_of(sockets) if sockets else 0)))
        except OSError as error:
            listener.close()
            if family is socket.AF_INET6:
                continue
            raise StartupFailed(f"cannot listen on {host}:{port}: {error.strerror}; choose another port") from error
        listener.setblocking(False)
        sockets.append(listener)
    return sockets


def _port_of(sockets: list[socket.socket]) -> int:
    return int(sockets[0].getsockname()[1])
