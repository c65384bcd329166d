"""Builds a node from its parts and runs it: the composition root."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path

import structlog
from grpc_health.v1.health_pb2 import HealthCheckResponse

from stafett.common.blob_rpc import BLOB_SERVICE, add_blob_service
from stafett.common.cluster import Address, Registration
from stafett.common.errors import StartupFailed
from stafett.common.grpc_transport import bind, new_server
from stafett.common.metrics import new_registry
from stafett.common.metrics_endpoint import metrics_endpoint
from stafett.common.service import run_service, version
from stafett.node.admission import StreamSlots, Throttle
from stafett.node.containerd_store import ContainerdStore
from stafett.node.health import HealthProbe, Tally
from stafett.node.indexer import Indexer
from stafett.node.layout_store import LayoutStore
from stafett.node.metrics import NodeCollector
from stafett.node.ports import ContentStore
from stafett.node.servicer import BlobServicer
from stafett.node.session import Session, SessionThread
from stafett.node.settings import NodeSettings
from stafett.node.spoilt import SpoiltIngests
from stafett.node.unfinished import Unfinished

log = structlog.get_logger()

DISK_THREADS = 16


def main(arguments: list[str]) -> int:
    """Run `stafett node`; return the exit code."""
    return run_service("node", NodeSettings, arguments, serve)


async def serve(settings: NodeSettings, stopping: asyncio.Event) -> None:
    """Run a node until told to stop, then drain it.

    Raises:
        StartupFailed: if a port is taken.
    """
    loop = asyncio.get_running_loop()
    disk = ThreadPoolExecutor(DISK_THREADS, thread_name_prefix="disk")
    store = _open_store(settings, disk)
    slots, tally = StreamSlots(settings.max_streams), Tally()
    server, health = new_server()
    port = bind(
        server,
        Address(settings.listen_host, settings.listen_port),
        settings.tls,
        allow_plaintext=settings.allow_plaintext,
    )
    probe = HealthProbe(
        settings.content_root or Path("/"),
        slots.limit,
        lambda: slots.taken,
        lambda: indexer.store_available,
        lambda: indexer.held_bytes,
        tally,
    )
    session = SessionThread(
        Session(
            settings.tracker,
            settings.tls,
            _identity(settings, port),
            probe.sample,
            lambda draining: loop.call_soon_threadsafe(slots.order_drain, draining),
        )
    )
    indexer = Indexer(store, session.publish, settings.relist_interval_seconds)
    spoilt, unfinished = SpoiltIngests(store), Unfinished(store, disk)
    throttle = Throttle(settings.upload_limit_bytes_per_second)
    add_blob_service(server, BlobServicer(store, indexer, spoilt, unfinished, slots, throttle, tally))
    metrics = new_registry(NodeCollector(slots, tally, indexer, lambda: session.registered))
    try:
        async with metrics_endpoint(metrics, settings.metrics_address):
            await server.start()
            for name in ("", BLOB_SERVICE):
                await health.set(name, HealthCheckResponse.SERVING)
            log.info("listening", host=settings.listen_host, port=port, node_id=settings.node_id)
            loops = (indexer.run, spoilt.run, unfinished.run)
            await _run(session, slots, loops, settings.drain_grace_seconds, stopping)
    finally:
        await server.stop(grace=0)
        await store.close()
        unfinished.close()


async def _run(
    session: SessionThread,
    slots: StreamSlots,
    loops: Sequence[Callable[[], Coroutine[None, None, None]]],
    drain_grace_seconds: float,
    stopping: asyncio.Event,
) -> None:
    session.start()
    try:
        async with asyncio.TaskGroup() as group:
            endless = [group.create_task(loop()) for loop in loops]
            await stopping.wait()
            slots.leave()
            session.drain()
            await _until_idle(slots, drain_grace_seconds)
            for task in endless:
                task.cancel()
    finally:
        await asyncio.to_thread(session.stop)


def _open_store(settings: NodeSettings, disk: Executor) -> ContentStore:
    if settings.store == "containerd":
        return ContainerdStore(settings.containerd_socket, settings.namespaces, settings.content_root, disk)
    if settings.content_root is None:
        raise StartupFailed("store=oci-layout needs content_root, the layout directory")
    return LayoutStore(settings.content_root, disk)


def _identity(settings: NodeSettings, port: int) -> Registration:
    return Registration(
        settings.node_id,
        secrets.randbits(64),
        Address(settings.advertise_host or settings.listen_host, settings.advertise_port or port),
        settings.topology,
        settings.labels,
        version(),
    )


async def _until_idle(slots: StreamSlots, grace_seconds: float) -> None:
    """Wait until the running streams have ended, at most so long."""
    try:
        async with asyncio.timeout(grace_seconds):
            await slots.idle.wait()
    except TimeoutError:
        log.warning("drain_cut_short", streams=slots.taken)
