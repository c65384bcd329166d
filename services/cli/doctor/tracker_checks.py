"""What can be wrong with the trackers: each replica is asked, not only the one that a call happens to reach."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import grpc

from stafett.api.v1 import tracker_pb2, tracker_pb2_grpc
from stafett.cli.doctor.cluster_checks import CALL_SECONDS
from stafett.cli.doctor.setup import Setup
from stafett.cli.doctor.verdict import Verdict, fail, ok, warn
from stafett.common import wire
from stafett.common.cluster import Address, Node
from stafett.common.grpc_transport import TlsFiles, peer_channel, tracker_channel
from stafett.common.tls_refusal import in_words

SKEW_SECONDS = 2.0
"""A clock that is further off makes times in listings and traces useless. Leases do not depend on clocks."""


@dataclass(frozen=True)
class Answer:
    """What a replica says; `skew_seconds` is its clock less ours, None if it does not tell its time."""

    replica: str
    nodes: Sequence[Node]
    stale: bool
    mass_guard: bool
    skew_seconds: float | None


async def check_trackers(setup: Setup) -> tuple[list[Verdict], Sequence[Node] | None]:
    """Does every tracker answer, from Redis, with our clock? Returns the nodes that one knows from Redis, too."""
    verdicts: list[Verdict] = []
    answers: list[Answer] = []
    told = {"STAFETT_NODE_TRACKER": setup.node.tracker, "STAFETT_GATEWAY_TRACKER": setup.gateway.tracker}
    for target in dict.fromkeys(told.values()):
        named = " and ".join(name for name, value in told.items() if value == target)
        answer = await _ask(target, tracker_channel(target, setup.gateway.tls), setup.gateway.tls)
        if isinstance(answer, str):
            remedy = f"start a tracker, or correct {named}; a firewall may block its port"
            verdicts.append(fail("tracker", f"no tracker answers at {target}: {answer}", remedy))
            continue
        verdicts.append(ok("tracker", f"{target} answers"))
        replicas = await _replicas(target, setup.gateway.tls)
        asked = await asyncio.gather(*(_ask(name, channel, setup.gateway.tls) for name, channel in replicas.items()))
        found = [each for each in asked if isinstance(each, Answer)]
        for name, said in zip(replicas, asked, strict=True):
            if isinstance(said, str) and found:
                verdicts.append(warn("tracker", f"the replica {name} does not answer: {said}", "see its log; start it"))
        answers += found or [answer]
    fresh = next((answer.nodes for answer in answers if not answer.stale), None)
    return verdicts + judge(answers), fresh


def judge(answers: Sequence[Answer]) -> list[Verdict]:
    """Tell what is wrong with what the trackers say. Pure."""
    verdicts = []
    if stale := [answer.replica for answer in answers if answer.stale]:
        remedy = "start Redis, or correct STAFETT_TRACKER_REDIS_URL; the trackers' logs name what fails"
        said = f"{', '.join(stale)} cannot reach Redis, and answer from memory"
        verdicts.append(fail("redis", said, remedy))
    if any(answer.mass_guard for answer in answers):
        remedy = "see stafett nodes: a network fault between trackers and nodes is likely"
        verdicts.append(warn("mass-guard", "so many nodes seem to fail that the trackers doubt themselves", remedy))
    skews = {answer.replica: answer.skew_seconds for answer in answers if answer.skew_seconds is not None}
    off = [f"{skew:+.1f} s at {replica}" for replica, skew in skews.items() if abs(skew) > SKEW_SECONDS]
    if off:
        said = f"clocks of trackers are off ours: {', '.join(off)}"
        verdicts.append(fail("clock", said, "start a time service on all hosts"))
    elif skews:
        verdicts.append(ok("clock", "the trackers' clocks agree with ours"))
    return verdicts


async def _ask(replica: str, channel: grpc.aio.Channel, tls: TlsFiles | None) -> Answer | str:
    """Ask for the nodes, and close the channel; return why there is no answer if there is none."""
    stub: tracker_pb2_grpc.TrackerServiceAsyncStub = tracker_pb2_grpc.TrackerServiceStub(channel)
    asked_at = time.time()
    try:
        answer = await stub.ListNodes(tracker_pb2.ListNodesRequest(), timeout=CALL_SECONDS)
    except grpc.aio.AioRpcError as error:
        return in_words(error, tls)
    finally:
        await channel.close()
    skew = answer.now_unix_ms / 1000 - (asked_at + time.time()) / 2 if answer.now_unix_ms else None
    nodes = [wire.node_from_wire(message) for message in answer.nodes]
    return Answer(replica, nodes, answer.stale, answer.mass_guard, skew)


async def _replicas(target: str, tls: TlsFiles | None) -> Mapping[str, grpc.aio.Channel]:
    """Open a channel to each replica behind a target; none if it names but one, or cannot be taken apart."""
    kind, _, listed = target.partition(":")
    name = ""
    try:
        if kind in ("ipv4", "ipv6"):
            addresses = [Address.of_target(each) for each in listed.split(",")]
        else:
            asked = Address.of_target(target.removeprefix("dns:").rpartition("/")[2])
            name, loop = asked.host, asyncio.get_running_loop()
            found = await loop.getaddrinfo(name, asked.port, family=socket.AF_INET, type=socket.SOCK_STREAM)
            addresses = [Address(str(each[4][0]), asked.port) for each in found]
    except (OSError, ValueError):
        return {}
    if len(addresses) < 2:
        return {}
    return {address.target(): peer_channel(address, tls, certified_name=name) for address in addresses}
