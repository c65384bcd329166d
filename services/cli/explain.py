"""Shows who would serve a digest, or each piece of an image, to a host and why, ranked by the gateway's own code.

What only that host's gateway knows, its open streams and its breakers, is not in it: the answer is that of an idle one.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Sequence

from stafett.api.v1 import tracker_pb2, tracker_pb2_grpc
from stafett.cli.explain_image import explain_image
from stafett.cli.overview import print_table
from stafett.cli.trackers import CALL_SECONDS, EXIT_FAILED, trackers
from stafett.common import wire
from stafett.common.cluster import Holder, Node
from stafett.common.digest import Digest
from stafett.common.errors import DigestInvalid, NameInvalid
from stafett.common.reference import Reference
from stafett.gateway.selection import ALGORITHMS, Asking, Candidate, rank, usable, weigh, why_first

EXIT_USAGE = 2
HOLDERS_MAX = 64


def run_explain(target: str, text: str, asking: str, algorithm: str, *, as_json: bool) -> int:
    """Print the ranking of a digest's holders, or of each piece of an image; return the exit code."""
    try:
        wanted = Digest.parse(text) if text.startswith("sha256:") else Reference.parse(text)
    except (DigestInvalid, NameInvalid) as error:
        print(error, file=sys.stderr)
        return EXIT_USAGE
    if algorithm not in ALGORITHMS:
        print(f"unknown algorithm {algorithm!r}: choose one of {', '.join(ALGORITHMS)}", file=sys.stderr)
        return EXIT_USAGE
    with trackers(target) as stub:
        nodes = stub.ListNodes(tracker_pb2.ListNodesRequest(), timeout=CALL_SECONDS).nodes
        host = next((wire.node_from_wire(node) for node in nodes if node.id == asking), None)
        if host is None:
            print(f"no node {asking} is registered: see stafett nodes", file=sys.stderr)
            return EXIT_FAILED
        if isinstance(wanted, Reference):
            return explain_image(stub, wanted, lambda digest: _rank(stub, digest, host, algorithm)[:2], as_json=as_json)
        ranked, reason, stale = _rank(stub, wanted, host, algorithm)
    if as_json:
        candidates = [_document(number, candidate) for number, candidate in enumerate(ranked, 1)]
        print(json.dumps({"digest": text, "from": asking, "candidates": candidates, "reason": reason, "stale": stale}))
    else:
        _print(ranked, reason, stale=stale)
    return 0 if ranked else EXIT_FAILED


def _rank(
    stub: tracker_pb2_grpc.TrackerServiceStub, digest: Digest, host: Node, algorithm: str
) -> tuple[tuple[Candidate, ...], str, bool]:
    """Rank a digest's holders as the host's gateway would; why the first is first; whether it is from memory."""
    holders, stale = _locate(stub, digest, host)
    place, chosen = Asking(host.id, host.topology), ALGORITHMS[algorithm]
    ranked = rank(chosen, weigh(usable(holders, place, {}), place, {}), digest, random.Random())
    return ranked, why_first(ranked, chosen), stale


def _locate(stub: tracker_pb2_grpc.TrackerServiceStub, digest: Digest, host: Node) -> tuple[tuple[Holder, ...], bool]:
    request = tracker_pb2.LocateRequest(
        digests=[str(digest)],
        node_id=host.id,
        topology=wire.topology_to_wire(host.topology),
        max_holders=HOLDERS_MAX,
    )
    answer = stub.Locate(request, timeout=CALL_SECONDS)
    return wire.located_from_wire(answer)[digest], answer.stale


def _document(number: int, candidate: Candidate) -> dict[str, object]:
    score = candidate.node.score
    return {
        "rank": number,
        "node": candidate.node.id,
        "address": candidate.node.address.target(),
        "tier": candidate.tier.name.lower(),
        "cost": round(candidate.cost, 6),
        "score": round(candidate.score, 4),
        "components": {name: round(value, 4) for name, value in score.components.items()} if score else {},
        "first_byte_seconds": candidate.first_byte_seconds,
        "seconds_per_mib": candidate.seconds_per_mib,
    }


def _print(ranked: Sequence[Candidate], reason: str, *, stale: bool) -> None:
    names = sorted({name for candidate in ranked if candidate.node.score for name in candidate.node.score.components})
    rows = [
        (
            str(number),
            candidate.node.id,
            candidate.tier.name.lower(),
            f"{candidate.cost:.3f}",
            f"{candidate.score:.2f}",
            *(f"{candidate.node.score.components[name]:.2f}" if candidate.node.score else "-" for name in names),
            f"{candidate.seconds_per_mib:.4f}",
        )
        for number, candidate in enumerate(ranked, 1)
    ]
    print_table(("rank", "node", "tier", "cost", "score", *names, "s/MiB"), rows, stale=stale)
    print(f"first: {ranked[0].node.id}: {reason}" if ranked else reason)
