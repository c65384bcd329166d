"""What can be wrong between the parts: the gateway's ports, the node, its lease, the way to peers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

import grpc
import httpx2

from stafett.api.v1 import node_pb2, node_pb2_grpc, tracker_pb2, tracker_pb2_grpc
from stafett.cli.doctor.host_checks import Store
from stafett.cli.doctor.setup import Setup
from stafett.cli.doctor.verdict import Verdict, fail, ok, warn
from stafett.cli.peer_read import read_small
from stafett.common import wire
from stafett.common.cluster import Address, Node, NodeState
from stafett.common.digest import Digest
from stafett.common.errors import StafettError
from stafett.common.grpc_transport import TlsFiles, peer_channel, tracker_channel
from stafett.common.tls_refusal import in_words
from stafett.common.topology import tier_between

CALL_SECONDS = 3.0
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


async def check_node(setup: Setup) -> Verdict:
    """Does the gateway reach the node of this host, by the name that it has?"""
    node, gateway = setup.node, setup.gateway
    if gateway.node_id != node.node_id:
        remedy = "set STAFETT_NODE_NODE_ID and STAFETT_GATEWAY_NODE_ID to the same name"
        return fail("node", f"the gateway is told that its node is {gateway.node_id}, but it is {node.node_id}", remedy)
    if reason := await _refusal(gateway.node_address, gateway.tls):
        remedy = "start stafett node, or correct STAFETT_GATEWAY_NODE_TARGET; the node's log says what fails"
        return fail("node", f"no node answers at {gateway.node_target}: {reason}", remedy)
    return ok("node", f"{node.node_id} answers at {gateway.node_target}")


def check_lease(setup: Setup, nodes: Sequence[Node], store: Store | None) -> Verdict:
    """Do the trackers know our node, as READY, with what the store has?"""
    node_id = setup.node.node_id
    own = next((node for node in nodes if node.id == node_id), None)
    if own is None:
        remedy = f"start stafett node with STAFETT_NODE_NODE_ID={node_id}, or name the one that runs here by it"
        return fail("lease", f"no node {node_id} is registered", remedy)
    if own.state is not NodeState.READY:
        remedy = "stafett drain --undo" if own.state is NodeState.DRAINING else "see the node's log"
        return fail("lease", f"{node_id} is {own.state.value}: {own.reason}", f"{remedy}; stafett nodes shows it")
    if store is not None and store.blobs and not own.blob_count:
        remedy = "see the node's log: it announces what it lists within seconds"
        return warn("lease", f"{node_id} is READY, but has announced none of its {len(store.blobs)} blobs", remedy)
    return ok("lease", f"{node_id} is READY with {own.blob_count} blobs")


async def check_peers(setup: Setup, nodes: Sequence[Node]) -> AsyncIterator[Verdict]:
    """Can the nearest other nodes be reached on their port?"""
    place = setup.node.topology
    others = [node for node in nodes if node.id != setup.node.node_id and node.state is NodeState.READY]
    others.sort(key=lambda node: (tier_between(place, node.topology), node.id))
    if not others:
        yield warn("peers", "no other node is READY", "install Stafett on more hosts; see stafett nodes")
    reached = await asyncio.gather(*(_refusal(node.address, setup.node.tls) for node in others[:PEERS]))
    for node, reason in zip(others, reached, strict=False):
        if reason:
            remedy = "open the node's port between hosts, and see its STAFETT_NODE_ADVERTISE_HOST"
            yield fail("peers", f"{node.id} does not answer at {node.address.target()}: {reason}", remedy)
        else:
            yield ok("peers", f"{node.id} answers at {node.address.target()}")


async def _refusal(address: Address, tls: TlsFiles | None) -> str:
    """Ask a node for what nobody has; return why it does not answer, empty if it does."""
    channel = peer_channel(address, tls)
    try:
        request = node_pb2.StatRequest(digest=str(_NOBODY_HAS))
        await node_pb2_grpc.BlobServiceStub(channel).Stat(request, timeout=CALL_SECONDS)
    except grpc.aio.AioRpcError as error:
        return "" if error.code() is grpc.StatusCode.NOT_FOUND else in_words(error, tls)
    finally:
        await channel.close()
    return ""


async def check_read(setup: Setup, store: Store) -> AsyncIterator[Verdict]:
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
    channel = tracker_channel(setup.gateway.tracker, setup.gateway.tls)
    try:
        stub: tracker_pb2_grpc.TrackerServiceAsyncStub = tracker_pb2_grpc.TrackerServiceStub(channel)
        located = wire.located_from_wire(await stub.Locate(request, timeout=CALL_SECONDS))
    except grpc.aio.AioRpcError:
        return
    finally:
        await channel.close()
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
