"""The trackers over gRPC: short calls for requests, one long Watch for node states."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import NoReturn

import grpc
import structlog

from stafett.api.v1 import tracker_pb2, tracker_pb2_grpc
from stafett.common import wire
from stafett.common.backoff import backoff_seconds
from stafett.common.cluster import Holder, Node
from stafett.common.digest import Digest
from stafett.common.errors import DigestInvalid, ManifestUnknown, Unavailable
from stafett.common.grpc_tracing import traced_call
from stafett.common.relaying import Fetch, Left, Phase, Refused, Wait
from stafett.gateway.ports import (
    PeerTally,
    RelayAnswer,
    RelayAsk,
    RelayFollow,
    TagTarget,
)
from stafett.gateway.selection import Asking

log = structlog.get_logger()

CALL_SECONDS = 0.25
CALL_TRIES = 2
"""A frozen replica costs one try: round robin sends the next one elsewhere."""
RELAY_SECONDS = 2.0
"""A tracker may keep the question for a second, and ask another one first."""
REPORT_SECONDS = 1.5
"""Failures of peers make the tracker probe them first."""
TAG_SECONDS = 1.0
"""Tags are asked for when upstream is dead: better late than not."""
WATCH_SECONDS = 3600.0
WATCH_SILENCE_SECONDS = 5.0
"""A tracker gives a sign of life every two seconds; one that does not is left for another."""
_DIGESTS_MAX = 1000


class GrpcTracker:
    """Adapter of `ports.Tracker`, and the feed of node states."""

    def __init__(self, channel: grpc.aio.Channel, asking: Asking) -> None:
        self._stub = tracker_pb2_grpc.TrackerServiceStub(channel)
        self._asking = asking
        self.connected = False
        """Whether a tracker tells us of node states now."""

    async def locate(self, digests: Sequence[Digest]) -> Mapping[Digest, tuple[Holder, ...]]:
        """See `ports.Tracker`."""
        found: dict[Digest, tuple[Holder, ...]] = {}
        for start in range(0, len(digests), _DIGESTS_MAX):
            request = tracker_pb2.LocateRequest(
                digests=[str(digest) for digest in digests[start : start + _DIGESTS_MAX]],
                node_id=self._asking.node_id,
                topology=wire.topology_to_wire(self._asking.topology),
            )
            response = await self._locate_once(request)
            located = wire.located_from_wire(response)
            found |= {digest: holders for digest, holders in located.items() if holders or not response.stale}
        return found

    async def _locate_once(self, request: tracker_pb2.LocateRequest) -> tracker_pb2.LocateResponse:
        """Ask, and ask another one when the answer is from a tracker's memory: it may be alone in that."""
        stale: tracker_pb2.LocateResponse | None = None
        for tries_left in reversed(range(CALL_TRIES)):
            try:
                with traced_call("TrackerService/Locate") as metadata:
                    answer = await self._stub.Locate(request, timeout=CALL_SECONDS, metadata=metadata)
                if not answer.stale:
                    return answer
                stale = answer
            except grpc.aio.AioRpcError as error:
                if stale is None:
                    _raise_unless_retriable(error, tries_left)
        assert stale is not None, "without any answer the last try has raised"
        return stale

    async def relay(self, ask: RelayAsk) -> tuple[RelayAnswer, float]:
        """See `ports.Tracker`."""
        request = tracker_pb2.RelayRequest(
            digest=str(ask.digest),
            node_id=self._asking.node_id,
            topology=wire.topology_to_wire(self._asking.topology),
            size_bytes=ask.size_bytes,
            received_bytes=ask.received_bytes,
            ingest_open=ask.ingest_open,
            phase=tracker_pb2.RelayPhase.ValueType(ask.phase.value),
            parent=ask.parent,
            token=ask.token,
            left=[
                tracker_pb2.LeftParent(node_id=node_id, failed=why is Left.FAILED, idle=why is Left.IDLE)
                for node_id, why in ask.left.items()
            ],
        )
        for tries_left in reversed(range(CALL_TRIES)):
            try:
                with traced_call("TrackerService/Relay", wanted=ask.phase is Phase.ENTER) as metadata:
                    answer = await self._stub.Relay(request, timeout=RELAY_SECONDS, metadata=metadata)
                return _relay_answer(answer), answer.again_after_ms / 1000
            except grpc.aio.AioRpcError as error:
                _raise_unless_retriable(error, tries_left)
        raise AssertionError("the last try returns or raises")

    async def resolve_tag(self, name: str) -> TagTarget:
        """See `ports.Tracker`."""
        request = tracker_pb2.ResolveTagRequest(name=name)
        for tries_left in reversed(range(CALL_TRIES)):
            try:
                with traced_call("TrackerService/ResolveTag") as metadata:
                    answer = await self._stub.ResolveTag(request, timeout=TAG_SECONDS, metadata=metadata)
                return TagTarget(Digest.parse(answer.target_digest), answer.updated_at_unix_ms)
            except grpc.aio.AioRpcError as error:
                if error.code() is grpc.StatusCode.NOT_FOUND:
                    raise ManifestUnknown(name) from error
                _raise_unless_retriable(error, tries_left)
            except DigestInvalid as error:
                raise ManifestUnknown(name) from error
        raise AssertionError("the last try returns or raises")

    async def report(self, tallies: Mapping[str, PeerTally]) -> None:
        """See `ports.Tracker`."""
        outcomes = [
            tracker_pb2.PeerOutcomes(
                node_id=node_id,
                epoch=tally.epoch,
                succeeded=tally.succeeded,
                refused=tally.refused,
                stalled=tally.stalled,
                overloaded=tally.overloaded,
                first_byte_seconds=fmean(tally.first_byte_seconds or [0.0]),
                seconds_per_mib=fmean(tally.seconds_per_mib or [0.0]),
                corrupt_digests=[str(digest) for digest in tally.corrupt],
            )
            for node_id, tally in tallies.items()
        ]
        request = tracker_pb2.ReportOutcomesRequest(reporter=self._asking.node_id, outcomes=outcomes)
        for tries_left in reversed(range(CALL_TRIES)):
            try:
                await self._stub.ReportOutcomes(request, timeout=REPORT_SECONDS)
                return
            except grpc.aio.AioRpcError as error:
                _raise_unless_retriable(error, tries_left)

    async def watch(self, nodes: dict[str, Node]) -> NoReturn:
        """Keep `nodes` at what the trackers believe, for ever; while none answers it stays as it is."""
        rng = random.Random()
        attempt = 0
        while True:
            call = self._stub.Watch(tracker_pb2.WatchRequest(), timeout=WATCH_SECONDS)
            try:
                while True:
                    async with asyncio.timeout(WATCH_SILENCE_SECONDS):
                        response = await call.read()
                    if not isinstance(response, tracker_pb2.WatchResponse):
                        break
                    attempt = 0
                    self.connected = True
                    _apply(response, nodes)
            except grpc.aio.AioRpcError as error:
                log.info("watch_ended", status=error.code().name)
            except TimeoutError:
                log.info("watch_ended", status="silent")
            finally:
                self.connected = False
                call.cancel()
            await asyncio.sleep(backoff_seconds(attempt, cap=2.0, rng=rng))
            attempt += 1


def _relay_answer(answer: tracker_pb2.RelayResponse) -> RelayAnswer:
    match answer.WhichOneof("answer"):
        case "follow":
            parent = answer.follow
            return RelayFollow(wire.node_from_wire(parent.node), parent.complete, tuple(parent.ancestors))
        case "fetch":
            return Fetch(answer.fetch.token)
        case "refused":
            return Refused(answer.refused.reason)
        case _:
            return Wait()


def _apply(response: tracker_pb2.WatchResponse, nodes: dict[str, Node]) -> None:
    if response.HasField("snapshot"):
        for gone in nodes.keys() - {message.id for message in response.snapshot.nodes}:
            del nodes[gone]
    told = [response.changed] if response.HasField("changed") else response.snapshot.nodes
    for node in map(wire.node_from_wire, told):
        known = nodes.get(node.id)
        if known is None or node.rank >= known.rank:
            nodes[node.id] = node


def _raise_unless_retriable(error: grpc.aio.AioRpcError, tries_left: int) -> None:
    retriable = error.code() in (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.UNAVAILABLE)
    if not retriable or tries_left == 0:
        raise Unavailable("tracker", error.code().name) from error
