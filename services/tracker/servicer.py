"""TrackerService on the wire: turns messages into calls and answers into messages, nothing else."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing

import grpc

from stafett.api.v1 import tracker_pb2, tracker_pb2_grpc
from stafett.common import wire
from stafett.common.digest import Digest
from stafett.common.errors import NodeUnknown, RequestInvalid, Unavailable
from stafett.common.relaying import Fetch, Refused, Wait
from stafett.tracker import requests
from stafett.tracker.fellows import Fellows
from stafett.tracker.liveness import Event
from stafett.tracker.lookup import Lookup
from stafett.tracker.membership import Membership, WatchStep
from stafett.tracker.outcomes import Outcomes
from stafett.tracker.relay_decision import Answer, Follow
from stafett.tracker.relays import Relays
from stafett.tracker.session import NodeSession, SessionParts

REGISTER_SECONDS = 10.0


class TrackerServicer(tracker_pb2_grpc.TrackerServiceServicer):
    """Serves nodes, gateways and operators."""

    def __init__(
        self,
        membership: Membership,
        lookup: Lookup,
        parts: SessionParts,
        outcomes: Outcomes,
        relays: Relays,
        fellows: Fellows,
        guarded: Callable[[], bool],
        *,
        lease_ttl_seconds: float,
        heartbeat_interval_seconds: float,
    ) -> None:
        self.membership = membership
        self._lookup = lookup
        self._parts = parts
        self._outcomes = outcomes
        self._relays = relays
        self._fellows = fellows
        self._guarded = guarded
        self._lease_ttl_ms = round(lease_ttl_seconds * 1000)
        self._heartbeat_interval_ms = round(heartbeat_interval_seconds * 1000)
        self.stopping = False
        self.sessions = 0
        """Sessions that are open now."""
        self.lookups = {"fresh": 0, "stale": 0}
        """Answers to Locate."""

    async def Session(  # noqa: N802
        self,
        request_iterator: AsyncIterator[tracker_pb2.SessionRequest],
        context: grpc.aio.ServicerContext[tracker_pb2.SessionRequest, tracker_pb2.SessionResponse],
    ) -> AsyncIterator[tracker_pb2.SessionResponse]:
        session, announce_all = await self._open(request_iterator)
        self.sessions += 1
        try:
            registered = tracker_pb2.Registered(
                epoch=session.owner.epoch,
                lease_ttl_ms=self._lease_ttl_ms,
                heartbeat_interval_ms=self._heartbeat_interval_ms,
                announce_all=announce_all,
            )
            yield tracker_pb2.SessionResponse(registered=registered)
            async for request in request_iterator:
                for response in await _answer(session, request):
                    yield response
        finally:
            self.sessions -= 1
            if not self.stopping:
                await session.close()

    async def Locate(  # noqa: N802
        self, request: tracker_pb2.LocateRequest, context: object
    ) -> tracker_pb2.LocateResponse:
        digests = requests.digests(request)
        answers, stale = await self._lookup.locate(digests, requests.question(request))
        self.lookups["stale" if stale else "fresh"] += 1
        nodes = {holder.node.id: holder.node for holders in answers for holder in holders}
        return tracker_pb2.LocateResponse(
            blobs=[wire.located_to_wire(digest, holders) for digest, holders in zip(digests, answers, strict=True)],
            nodes=map(wire.node_to_wire, await self._lookup.described(nodes.values())),
            stale=stale,
        )

    async def Relay(  # noqa: N802
        self, request: tracker_pb2.RelayRequest, context: object
    ) -> tracker_pb2.RelayResponse:
        digest, ask = Digest.parse(request.digest), requests.relay_ask(request)
        owner = None if request.forwarded else self._fellows.other_owner(digest)
        response = await self._fellows.ask(owner, request) if owner else None
        if response is not None:
            return response
        answer, again_after_seconds = await self._relays.answer(digest, ask)
        return self._relay_response(answer, round(again_after_seconds * 1000))

    async def ResolveTag(  # noqa: N802
        self, request: tracker_pb2.ResolveTagRequest, context: object
    ) -> tracker_pb2.ResolveTagResponse:
        image, stale = await self._lookup.resolve(requests.image_name(request.name))
        return tracker_pb2.ResolveTagResponse(
            target_digest=str(image.target),
            target_media_type=image.target_media_type,
            target_size_bytes=image.target_size_bytes,
            updated_at_unix_ms=image.updated_at_unix_ms,
            stale=stale,
        )

    async def Watch(  # noqa: N802
        self, request: tracker_pb2.WatchRequest, context: object
    ) -> AsyncIterator[tracker_pb2.WatchResponse]:
        self.membership.require_loaded()
        async with aclosing(self.membership.watch()) as steps:
            async for step in steps:
                yield _watch_response(step, self.membership.stale)

    async def ReportOutcomes(  # noqa: N802
        self, request: tracker_pb2.ReportOutcomesRequest, context: object
    ) -> tracker_pb2.ReportOutcomesResponse:
        await self._outcomes.take(*requests.peer_reports(request))
        return tracker_pb2.ReportOutcomesResponse()

    async def DrainNode(  # noqa: N802
        self, request: tracker_pb2.DrainNodeRequest, context: object
    ) -> tracker_pb2.DrainNodeResponse:
        member = self.membership.members.get(request.node_id)
        if member is None:
            raise NodeUnknown(request.node_id)
        event = Event.DRAIN_ORDERED if request.draining else Event.DRAIN_REVOKED
        await self._parts.nodes.change(member.node.id, member.node.epoch, event)
        return tracker_pb2.DrainNodeResponse()

    async def ListNodes(  # noqa: N802
        self, request: tracker_pb2.ListNodesRequest, context: object
    ) -> tracker_pb2.ListNodesResponse:
        nodes, stale = await self._lookup.nodes()
        return tracker_pb2.ListNodesResponse(
            nodes=map(wire.node_to_wire, nodes),
            stale=stale,
            mass_guard=self._guarded(),
            now_unix_ms=round(time.time() * 1000),
        )

    async def ListImages(  # noqa: N802
        self, request: tracker_pb2.ListImagesRequest, context: object
    ) -> tracker_pb2.ListImagesResponse:
        images, stale = await self._lookup.images()
        return tracker_pb2.ListImagesResponse(images=map(wire.image_summary_to_wire, images), stale=stale)

    def _relay_response(self, answer: Answer, again_after_ms: int) -> tracker_pb2.RelayResponse:
        response = tracker_pb2.RelayResponse(again_after_ms=again_after_ms)
        match answer:
            case Follow(parent, complete, ancestors) if parent in self.membership.members:
                node = wire.node_to_wire(self.membership.members[parent].node)
                response.follow.CopyFrom(tracker_pb2.RelayParent(node=node, complete=complete, ancestors=ancestors))
            case Fetch(token):
                response.fetch.token = token
            case Wait() | Follow():
                response.wait.SetInParent()
            case Refused(reason):
                response.refused.reason = reason
        return response

    async def _open(self, messages: AsyncIterator[tracker_pb2.SessionRequest]) -> tuple[NodeSession, bool]:
        try:
            async with asyncio.timeout(REGISTER_SECONDS):
                first = await anext(aiter(messages), None)
        except TimeoutError:
            first = None
        if first is None or first.WhichOneof("message") != "register":
            raise RequestInvalid("message", f"Register must come first, within {REGISTER_SECONDS:.0f} s")
        registration = requests.registration(first.register)
        return await NodeSession.open(self._parts, registration, wire.inventory_from_wire(first.register.inventory))


async def _answer(session: NodeSession, request: tracker_pb2.SessionRequest) -> list[tracker_pb2.SessionResponse]:
    kind = request.WhichOneof("message")
    if kind == "heartbeat":
        return await _beat(session, request.heartbeat)
    if kind == "announce":
        await session.announce(requests.announcement(request.announce))
        return [tracker_pb2.SessionResponse(announce_ack=tracker_pb2.AnnounceAck())]
    if kind == "drain":
        await session.drain(request.drain.draining)
        return []
    raise RequestInvalid("message", "after Register must be announce, heartbeat or drain")


async def _beat(session: NodeSession, beat: tracker_pb2.Heartbeat) -> list[tracker_pb2.SessionResponse]:
    """Renew; without an acknowledgement while Redis is away, as then the node decides where to go."""
    health = wire.health_from_wire(beat.health) if beat.HasField("health") else None
    inventory = wire.inventory_from_wire(beat.inventory) if beat.HasField("inventory") else None
    try:
        reason = await session.beat(health, inventory)
    except Unavailable:
        return []
    responses = [tracker_pb2.SessionResponse(heartbeat_ack=tracker_pb2.HeartbeatAck(sequence=beat.sequence))]
    if reason:
        order = tracker_pb2.Command(announce_all=tracker_pb2.AnnounceAll(reason=reason))
        responses.append(tracker_pb2.SessionResponse(command=order))
    draining = session.drain_order()
    if draining is not None:
        order = tracker_pb2.Command(drain=tracker_pb2.Drain(draining=draining))
        responses.append(tracker_pb2.SessionResponse(command=order))
    return responses


def _watch_response(step: WatchStep, stale: bool) -> tracker_pb2.WatchResponse:
    nodes = [wire.node_to_wire(node) for node in step.nodes]
    if step.snapshot:
        snapshot = tracker_pb2.NodeSnapshot(nodes=nodes)
        return tracker_pb2.WatchResponse(revision=step.revision, snapshot=snapshot, stale=stale)
    return tracker_pb2.WatchResponse(revision=step.revision, changed=nodes[0] if nodes else None, stale=stale)
