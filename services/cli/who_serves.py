"""Asks the trackers who has a digest, and ranks them by the gateway's own code.

What only a host's gateway knows, its open streams and its breakers, is not in it: the answer is that of an idle one.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from stafett.api.v1 import tracker_pb2, tracker_pb2_grpc
from stafett.cli.trackers import CALL_SECONDS
from stafett.common import wire
from stafett.common.cluster import Holder, Node
from stafett.common.digest import Digest
from stafett.common.topology import Topology
from stafett.gateway.selection import ALGORITHMS, Asking, Candidate, rank, usable, weigh, why_first

HOLDERS_MAX = 64


@dataclass(frozen=True)
class Answer:
    """Who has a digest (nearest first), and whom the asking host would ask, in which order; nobody asks without one."""

    holders: Sequence[Holder]
    candidates: Sequence[Candidate]
    own: bool
    """Whether the asking host has it itself."""
    reason: str
    stale: bool


def who_serves(stub: tracker_pb2_grpc.TrackerServiceStub, host: Node | None, algorithm: str, digest: Digest) -> Answer:
    """Find a digest's holders, and rank them as the host's gateway would."""
    place = host.topology if host else Topology()
    request = tracker_pb2.LocateRequest(
        digests=[str(digest)], topology=wire.topology_to_wire(place), max_holders=HOLDERS_MAX
    )
    located = stub.Locate(request, timeout=CALL_SECONDS)
    holders = wire.located_from_wire(located)[digest]
    if host is None:
        return Answer(holders, (), False, "", located.stale)
    if any(holder.node.id == host.id for holder in holders):
        return Answer(holders, (), True, f"{host.id} has it: its container runtime does not ask", located.stale)
    asking, chosen = Asking(host.id, place), ALGORITHMS[algorithm]
    ranked = rank(chosen, weigh(usable(holders, asking, {}), asking, {}), digest, random.Random())
    return Answer(holders, ranked, False, why_first(ranked, chosen), located.stale)
