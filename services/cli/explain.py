"""`stafett explain`: who has a digest, or each piece of an image, who would serve it to a host, and why."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Mapping

from stafett.api.v1 import tracker_pb2
from stafett.cli.explain_image import explain_image
from stafett.cli.overview import place_of, print_table
from stafett.cli.trackers import CALL_SECONDS, EXIT_FAILED, trackers
from stafett.cli.who_serves import HOLDERS_MAX, Answer, who_serves
from stafett.common import wire
from stafett.common.cluster import NodeState
from stafett.common.digest import Digest
from stafett.common.errors import DigestInvalid, NameInvalid
from stafett.common.reference import Reference
from stafett.gateway.selection import ALGORITHMS, Candidate

EXIT_USAGE = 2


def run_explain(target: str, text: str, asking: str | None, algorithm: str, *, as_json: bool) -> int:
    """Print who has a digest, or each piece of an image, and who would serve it; return the exit code."""
    try:
        wanted = Digest.parse(text) if text.startswith("sha256:") else Reference.parse(text)
    except (DigestInvalid, NameInvalid) as error:
        print(error, file=sys.stderr)
        return EXIT_USAGE
    if algorithm not in ALGORITHMS:
        print(f"unknown algorithm {algorithm!r}: choose one of {', '.join(ALGORITHMS)}", file=sys.stderr)
        return EXIT_USAGE
    with trackers(target) as stub:
        listed = stub.ListNodes(tracker_pb2.ListNodesRequest(), timeout=CALL_SECONDS).nodes
        nodes = [wire.node_from_wire(node) for node in listed]
        host = next((node for node in nodes if node.id == asking), None)
        if asking and host is None:
            print(f"no node {asking} is registered: see stafett nodes", file=sys.stderr)
            return EXIT_FAILED
        if isinstance(wanted, Reference):
            look = functools.partial(who_serves, stub, host, algorithm)
            return explain_image(stub, wanted, look, asking, as_json=as_json)
        answer = who_serves(stub, host, algorithm, wanted)
    away = {node.id: node.state.value for node in nodes if node.state is not NodeState.READY}
    if as_json:
        print(json.dumps({**_document(wanted, asking, answer), "out_of_service": away}))
    else:
        _print(asking, answer, away)
    return 0 if answer.holders else EXIT_FAILED


def _print(asking: str | None, answer: Answer, away: Mapping[str, str]) -> None:
    if asking and not answer.own:
        _print_ranking(answer)
    else:
        _print_holders(answer)
    if answer.more:
        print(f"these are the {HOLDERS_MAX} nearest, others may have it too")
    if away:
        listed = ", ".join(f"{node_id} ({state})" for node_id, state in sorted(away.items()))
        print(f"out of service, not asked while others have it: {listed}")


def _document(digest: Digest, asking: str | None, answer: Answer) -> dict[str, object]:
    return {
        "digest": str(digest),
        "from": asking,
        "holders": [
            {"node": holder.node.id, "zone": holder.node.topology.zone, "size_bytes": holder.size_bytes}
            for holder in answer.holders
        ],
        "own": answer.own,
        "candidates": [_candidate(number, candidate) for number, candidate in enumerate(answer.candidates, 1)],
        "more": answer.more,
        "reason": answer.reason,
        "stale": answer.stale,
    }


def _candidate(number: int, candidate: Candidate) -> dict[str, object]:
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


def _print_holders(answer: Answer) -> None:
    rows = [
        (
            holder.node.id,
            holder.node.state.value,
            place_of(holder.node),
            f"{holder.node.score.total:.2f}" if holder.node.score else "-",
        )
        for holder in answer.holders
    ]
    print_table(("node", "state", "region/zone/rack", "score"), rows, stale=answer.stale)
    print(answer.reason or (f"{len(rows)} hold it" if rows else "nobody holds it: it comes from upstream"))


def _print_ranking(answer: Answer) -> None:
    ranked = answer.candidates
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
    print_table(("rank", "node", "tier", "cost", "score", *names, "s/MiB"), rows, stale=answer.stale)
    print(f"first: {ranked[0].node.id}: {answer.reason}" if ranked else answer.reason)
