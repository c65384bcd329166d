"""What the trackers know, as tables or JSON, and what an operator tells them: nodes, images, drain."""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict

import grpc
from rich.console import Console
from rich.filesize import decimal
from rich.table import Table

from stafett.api.v1 import tracker_pb2
from stafett.cli.trackers import CALL_SECONDS, EXIT_FAILED, trackers
from stafett.common import wire
from stafett.common.cluster import ImageSummary, Node

PIPED_COLUMNS = 1000
"""Wide enough that each row is one line for the program that reads it."""
NODES_SHOWN = 8
"""Of an image in the table; `--json` has all."""


def show_nodes(target: str, *, as_json: bool) -> int:
    """Print all nodes; return the exit code."""
    with trackers(target) as stub:
        answer = stub.ListNodes(tracker_pb2.ListNodesRequest(), timeout=CALL_SECONDS)
    nodes = [wire.node_from_wire(message) for message in answer.nodes]
    if as_json:
        print(json.dumps({"nodes": [_node_document(node) for node in nodes], "stale": answer.stale}))
        return 0
    rows = [
        (
            node.id,
            f"{node.state.value}{f' ({node.reason})' if node.reason else ''}",
            _ago(node.state_since_unix_ms),
            place_of(node),
            node.address.target(),
            str(node.blob_count),
            decimal(node.health.held_bytes) if node.health else "-",
            node.version,
        )
        for node in nodes
    ]
    print_table(
        ("node", "state", "since", "region/zone/rack", "address", "blobs", "bytes", "version"), rows, stale=answer.stale
    )
    return 0


def show_images(target: str, *, as_json: bool) -> int:
    """Print all image names; return the exit code."""
    with trackers(target) as stub:
        answer = stub.ListImages(tracker_pb2.ListImagesRequest(), timeout=CALL_SECONDS)
        nodes = stub.ListNodes(tracker_pb2.ListNodesRequest(), timeout=CALL_SECONDS).nodes
    zones = {node.id: node.topology.zone for node in nodes}
    images = [wire.image_summary_from_wire(message) for message in answer.images]
    if as_json:
        print(json.dumps({"images": [_image_document(image, zones) for image in images], "stale": answer.stale}))
        return 0
    rows = [
        (
            image.name,
            str(image.target)[:19],
            decimal(image.content_bytes),
            str(len(image.complete_node_ids)),
            " ".join(f"{zone or '-'}:{count}" for zone, count in _by_zone(image, zones).items()) or "-",
            _some(image.complete_node_ids),
            _some(image.other_node_ids),
            _ago(image.updated_at_unix_ms),
        )
        for image in images
    ]
    columns = ("image", "digest", "size", "copies", "in zones", "complete on", "other on", "pulled")
    print_table(columns, rows, stale=answer.stale)
    return 0


def drain_node(target: str, node_id: str, *, draining: bool) -> int:
    """Take a node out of service or back into it; return the exit code."""
    with trackers(target) as stub:
        try:
            stub.DrainNode(tracker_pb2.DrainNodeRequest(node_id=node_id, draining=draining), timeout=CALL_SECONDS)
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.NOT_FOUND:
                raise
            print(f"no node {node_id} is registered: see stafett nodes", file=sys.stderr)
            return EXIT_FAILED
    print(f"{node_id} {'takes no new streams; those that run go on' if draining else 'is back in service'}")
    return 0


def _node_document(node: Node) -> dict[str, object]:
    return {**asdict(node), "state": node.state.value}


def _image_document(image: ImageSummary, zones: Mapping[str, str]) -> dict[str, object]:
    return {**asdict(image), "target": str(image.target), "complete_by_zone": _by_zone(image, zones)}


def _by_zone(image: ImageSummary, zones: Mapping[str, str]) -> dict[str, int]:
    """Count the complete copies by zone."""
    return dict(sorted(Counter(zones.get(node_id, "") for node_id in image.complete_node_ids).items()))


def _some(node_ids: Sequence[str]) -> str:
    more = len(node_ids) - NODES_SHOWN
    return " ".join(node_ids[:NODES_SHOWN]) + (f" and {more} more" if more > 0 else "") or "-"


def place_of(node: Node) -> str:
    """Write where a node stands."""
    return "/".join(part or "-" for part in (node.topology.region, node.topology.zone, node.topology.rack))


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, stale: bool) -> None:
    """Print a table, and a warning when it is from memory."""
    table = Table(box=None, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*row)
    Console(width=None if sys.stdout.isatty() else PIPED_COLUMNS).print(table)
    if stale:
        print("Redis is away: this is what the tracker remembers.", file=sys.stderr)


def _ago(unix_ms: int) -> str:
    if not unix_ms:
        return "-"
    seconds = max(0, int(time.time() - unix_ms / 1000))
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds // size} {unit}"
    return f"{seconds} s"
