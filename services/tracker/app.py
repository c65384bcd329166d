"""Puts the tracker together and runs it: `stafett tracker`."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine, Sequence
from functools import partial

import grpc
import structlog
from grpc_health.v1 import health_pb2
from grpc_health.v1.health import aio as health_aio

from stafett.api.v1 import tracker_pb2, tracker_pb2_grpc
from stafett.common.cluster import Address
from stafett.common.grpc_transport import bind, new_server
from stafett.common.metrics import new_registry
from stafett.common.metrics_endpoint import metrics_endpoint
from stafett.common.service import run_service
from stafett.tracker.fellows import Fellows
from stafett.tracker.health_view import HealthView
from stafett.tracker.holdings_store import HoldingsStore
from stafett.tracker.housekeeping import Housekeeping
from stafett.tracker.lease_renewals import LeaseRenewals
from stafett.tracker.lookup import Lookup
from stafett.tracker.membership import Membership
from stafett.tracker.membership_store import MembershipStore
from stafett.tracker.metrics import TrackerCollector
from stafett.tracker.outcomes import Outcomes
from stafett.tracker.probe import grpc_probe, grpc_verify
from stafett.tracker.redis_link import RedisLink
from stafett.tracker.relays import Relays
from stafett.tracker.servicer import TrackerServicer
from stafett.tracker.session import SessionParts
from stafett.tracker.settings import TrackerSettings
from stafett.tracker.tree_store import TreeStore

log = structlog.get_logger()

SERVICE = tracker_pb2.DESCRIPTOR.services_by_name["TrackerService"].full_name
_STOP_SECONDS = 0.5


def main(arguments: list[str]) -> int:
    """Run the tracker until it is told to stop; return the exit code."""
    return run_service("tracker", TrackerSettings, arguments, serve)


async def serve(
    settings: TrackerSettings, stopping: asyncio.Event, listening: asyncio.Future[int] | None = None
) -> None:
    """Serve until `stopping` is set; `listening` is told the port.

    Raises:
        StartupFailed: if it cannot listen. Redis may be away at any time.
    """
    rng = random.Random()
    link = RedisLink(settings.redis_place)
    nodes = MembershipStore(link, settings.lease_ttl_seconds, settings.heartbeat_interval_seconds)
    holdings = HoldingsStore(link, rng)
    membership = Membership(nodes, refill_seconds=settings.lease_ttl_seconds)
    renewals = LeaseRenewals(nodes)
    probe = grpc_probe(settings.tls)
    housekeeping = Housekeeping(nodes, holdings, membership, probe, settings.lease_ttl_seconds)
    outcomes = Outcomes(nodes, membership, probe, grpc_verify(settings.tls))
    lookup = Lookup(link, membership, HealthView(nodes, settings.score_weights), holdings, rng)
    relays = Relays(TreeStore(link), lookup, membership)
    fellows = Fellows(link, settings.tls)
    servicer = TrackerServicer(
        membership,
        lookup,
        SessionParts(nodes, renewals, holdings, settings.refresh_interval_seconds, rng, membership.ordered_to_drain),
        outcomes,
        relays,
        fellows,
        lambda: housekeeping.guarded,
        lease_ttl_seconds=settings.lease_ttl_seconds,
        heartbeat_interval_seconds=settings.heartbeat_interval_seconds,
    )
    loops = (
        membership.run,
        renewals.run,
        housekeeping.scan_leases,
        housekeeping.clear_reported,
        outcomes.verify_doubtful,
        outcomes.judge_accused,
        relays.run,
        fellows.run,
        partial(housekeeping.forget_nodes, settings.forget_after_seconds),
    )
    metrics = new_registry(TrackerCollector(link, membership, housekeeping, relays, fellows, servicer))
    try:
        async with metrics_endpoint(metrics, settings.metrics_address):
            await _run(settings, servicer, fellows, loops, stopping, listening)
    finally:
        await link.close()


async def _run(
    settings: TrackerSettings,
    servicer: TrackerServicer,
    fellows: Fellows,
    loops: Sequence[Callable[[], Coroutine[None, None, None]]],
    stopping: asyncio.Event,
    listening: asyncio.Future[int] | None,
) -> None:
    server, health = new_server()
    tracker_pb2_grpc.add_TrackerServiceServicer_to_server(servicer, server)
    try:
        port = await _listen(server, settings)
        fellows.listen_at(settings.advertised(port))
        if listening is not None:
            listening.set_result(port)
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(loop()) for loop in loops]
            tasks.append(group.create_task(_report_serving(health, servicer.membership)))
            await stopping.wait()
            servicer.stopping = True
            await health.enter_graceful_shutdown()
            await server.stop(_STOP_SECONDS)
            for task in tasks:
                task.cancel()
    finally:
        await server.stop(None)


async def _listen(server: grpc.aio.Server, settings: TrackerSettings) -> int:
    address = Address(settings.listen_host, settings.listen_port)
    port = bind(server, address, settings.tls, allow_plaintext=settings.allow_plaintext)
    await server.start()
    log.info("listening", host=settings.listen_host, port=port)
    return port


async def _report_serving(health: health_aio.HealthServicer, membership: Membership) -> None:
    """Report SERVING once this replica can answer, from then on also from memory."""
    for service in ("", SERVICE):
        await health.set(service, health_pb2.HealthCheckResponse.NOT_SERVING)
    await membership.loaded.wait()
    for service in ("", SERVICE):
        await health.set(service, health_pb2.HealthCheckResponse.SERVING)
