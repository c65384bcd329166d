"""What can be wrong between hosts: the gateway's ports, the trackers, the lease, the clock, the way to peers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence

import grpc
import httpx2

from stafett.api.v1 import node_pb2, node_pb2_grpc, tracker_pb2, tracker_pb2_grpc
from stafett.cli.doctor.host_checks import Store
from stafett.cli.doctor.setup import Setup
from stafett.cli.doctor.verdict import Verdict, fail, ok, warn
from stafett.cli.peer_read import read_small
from stafett.common import wire
from stafett.common.cluster import Node, NodeState
from stafett.common.digest import Digest
from stafett.common.errors import StafettError, StartupFailed
from stafett.common.grpc_transport import TlsFiles, peer_channel
from stafett.common.tls_files import kept
from stafett.common.tls_refusal import refusal
from stafett.common.topology import tier_between

CALL_SECONDS = 3.0
SKEW_SECONDS = 2.0
"""A clock that is further off makes times in listings and traces useless. Leases do not depend on clocks."""
PEERS = 2
SMALL_BYTES = 1024 * 1024
SAMPLE = 100
_NOBODY_HAS = Digest.of(b"stafett doctor asks whether this node answers")


async def check_gateway(setup: Setup) -> AsyncIterator[Verdict]:
    """Does a gateway answer on both ports?"""
    start = "start stafett gateway; see its log, and STAFETT_GATEWAY_LISTEN_PORT and STAFETT_GATEWAY_TAG_PORT"
    async with httpx2.AsyncClient(trust_env=False, timeout=CALL_SECONDS) as client:
        for check, url in (("gateway", setup.mirror_url), ("tag-port", setup.tags_url)):
            try:
                answer = await client.get(f"{url}/v2/")
            except httpx2.HTTPError as error:
                yield fail(check, f"{url} does not answer: {type(error).__name__}", start)
                continue
            if answer.headers.get("Docker-Distribution-API-Version") == "registry/2.0" and answer.status_code == 200:
                yield ok(check, f"{url} answers")
            else:
                yield fail(check, f"what answers at {url} is not a gateway (status {answer.status_code})", start)


def check_certificates(setup: Setup) -> list[Verdict]:
    """Are the certificate files of node and gateway of use?"""
    try:
        for tls in (setup.node.tls, setup.gateway.tls):
            if tls:
                kept(tls)
    except StartupFailed as error:
        return [fail("certificates", str(error), "the part does not start with these; stafett certs makes new ones")]
    return []


async def check_tracker(
    setup: Setup, stub: tracker_pb2_grpc.TrackerServiceAsyncStub, store: Store | None
) -> tuple[list[Verdict], list[Node]]:
    """Does a tracker answer, from Redis, with our clock, and does it know our node? Returns the nodes, too."""
    target = setup.gateway.tracker
    asked_at = time.time()
    try:
        answer = await stub.ListNodes(tracker_pb2.ListNodesRequest(), timeout=CALL_SECONDS)
    except grpc.aio.AioRpcError as error:
        if why := refusal(error.details() or "", setup.gateway.tls):
            return [fail("certificates", f"no connection to the trackers at {target}: {why.reason}", why.remedy)], []
        remedy = "start a tracker, or correct STAFETT_GATEWAY_TRACKER; a firewall may block its port"
        return [fail("tracker", f"no tracker answers at {target}: {error.code().name}", remedy)], []
    verdicts = [ok("tracker", f"{target} answers")]
    if answer.stale:
        remedy = "start Redis, or correct STAFETT_TRACKER_REDIS_URL; the trackers' logs name what fails"
        verdicts.append(fail("redis", "the trackers cannot reach Redis, and answer from memory", remedy))
    if answer.mass_guard:
        remedy = "see stafett nodes: a network fault between trackers and nodes is likely"
        verdicts.append(warn("mass-guard", "so many nodes seem to fail that the trackers doubt themselves", remedy))
    verdicts += _clock(answer.now_unix_ms / 1000, (asked_at + time.time()) / 2)
    nodes = [wire.node_from_wire(message) for message in answer.nodes]
    verdicts += [] if answer.stale else _lease(setup.node.node_id, nodes, store)
    return verdicts, nodes


def _clock(theirs: float, ours: float) -> list[Verdict]:
    if not theirs:
        return []  # a tracker that does not tell its time yet
    if abs(theirs - ours) > SKEW_SECONDS:
        said = f"the tracker's clock is {theirs - ours:+.1f} s off ours"
        return [fail("clock", said, "start a time service on both hosts")]
    return [ok("clock", "the tracker's clock agrees with ours")]


def _lease(node_id: str, nodes: Sequence[Node], store: Store | None) -> list[Verdict]:
    own = next((node for node in nodes if node.id == node_id), None)
    if own is None:
        remedy = f"start stafett node with STAFETT_NODE_NODE_ID={node_id}, or name the one that runs here by it"
        return [fail("lease", f"no node {node_id} is registered", remedy)]
    if own.state is not NodeState.READY:
        remedy = "stafett drain --undo" if own.state is NodeState.DRAINING else "see the node's log"
        return [fail("lease", f"{node_id} is {own.state.value}: {own.reason}", f"{remedy}; stafett nodes shows it")]
    if store is not None and store.blobs and not own.blob_count:
        remedy = "see the node's log: it announces what it lists within seconds"
        return [warn("lease", f"{node_id} is READY, but has announced none of its {len(store.blobs)} blobs", remedy)]
    return [ok("lease", f"{node_id} is READY with {own.blob_count} blobs")]


async def check_peers(setup: Setup, nodes: Sequence[Node]) -> AsyncIterator[Verdict]:
    """Can the nearest other nodes be reached on their port?"""
    place = setup.node.topology
    others = [node for node in nodes if node.id != setup.node.node_id and node.state is NodeState.READY]
    others.sort(key=lambda node: (tier_between(place, node.topology), node.id))
    if not others:
        yield warn("peers", "no other node is READY", "install Stafett on more hosts; see stafett nodes")
    reached = await asyncio.gather(*(_answers(node, setup.node.tls) for node in others[:PEERS]))
    for node, reason in zip(others, reached, strict=False):
        if reason:
            remedy = "open the node's port between hosts, and see its STAFETT_NODE_ADVERTISE_HOST"
            yield fail("peers", f"{node.id} does not answer at {node.address.target()}: {reason}", remedy)
        else:
            yield ok("peers", f"{node.id} answers at {node.address.target()}")


async def _answers(node: Node, tls: TlsFiles | None) -> str:
    channel = peer_channel(node.address, tls)
    try:
        request = node_pb2.StatRequest(digest=str(_NOBODY_HAS))
        await node_pb2_grpc.BlobServiceStub(channel).Stat(request, timeout=CALL_SECONDS)
    except grpc.aio.AioRpcError as error:
        if error.code() is grpc.StatusCode.NOT_FOUND:
            return ""
        why = refusal(error.details() or "", tls)
        return f"{why.reason}; {why.remedy}" if why else error.code().name
    finally:
        await channel.close()
    return ""


async def check_read(
    setup: Setup, stub: tracker_pb2_grpc.TrackerServiceAsyncStub, store: Store
) -> AsyncIterator[Verdict]:
    """Does a blob that this host has come right from a peer that has it, too?"""
    small = sorted((size, digest.hex) for digest, size in store.blobs.items() if 0 < size <= SMALL_BYTES)
    digests = [Digest(hex_) for _, hex_ in small[-SAMPLE:]]
    if not digests:
        return
    request = tracker_pb2.LocateRequest(
        digests=list(map(str, digests)),
        node_id=setup.node.node_id,
        topology=wire.topology_to_wire(setup.node.topology),
        max_holders=1,
    )
    try:
        located = wire.located_from_wire(await stub.Locate(request, timeout=CALL_SECONDS))
    except grpc.aio.AioRpcError:
        return
    found = [(digest, holders[0]) for digest, holders in located.items() if holders]
    if not found:
        yield ok("test-read", "no other host has a small blob of this one yet")
        return
    digest, holder = found[0]
    try:
        right = Digest.of(await read_small(holder, digest, setup.node.tls)) == digest
    except (StafettError, TimeoutError) as error:
        remedy = "see the logs of both nodes; stafett explain shows who would serve it"
        yield fail("test-read", f"{digest} cannot be read from {holder.node.id}: {error}", remedy)
        return
    if right:
        yield ok("test-read", f"a blob came right from {holder.node.id}")
    else:
        yield fail("test-read", f"{digest} of {holder.node.id} is damaged", "check the disk of that host")
