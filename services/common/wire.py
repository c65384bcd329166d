"""Translation between `cluster` types and protobuf messages; the only place that knows both."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, fields

from stafett.api.v1 import tracker_pb2, types_pb2
from stafett.common.cluster import (
    Address,
    HealthSample,
    HealthScore,
    HeldBlob,
    HeldImage,
    Holder,
    ImageSummary,
    Node,
    NodeState,
)
from stafett.common.digest import Digest
from stafett.common.errors import RequestInvalid
from stafett.common.inventory import Inventory
from stafett.common.topology import Topology

_STATE_TO_WIRE = {
    NodeState.READY: types_pb2.NODE_STATE_READY,
    NodeState.SUSPECT: types_pb2.NODE_STATE_SUSPECT,
    NodeState.DRAINING: types_pb2.NODE_STATE_DRAINING,
    NodeState.DOWN: types_pb2.NODE_STATE_DOWN,
}
_STATE_FROM_WIRE = {number: state for state, number in _STATE_TO_WIRE.items()}


def address_to_wire(address: Address) -> types_pb2.Address:
    return types_pb2.Address(host=address.host, port=address.port)


def address_from_wire(message: types_pb2.Address) -> Address:
    """Raises RequestInvalid: if the host is empty or the port out of range."""
    if not message.host or not 0 < message.port < 65536:
        raise RequestInvalid("address", "needs a host and a port from 1 to 65535")
    return Address(message.host, message.port)


def topology_to_wire(topology: Topology) -> types_pb2.Topology:
    return types_pb2.Topology(region=topology.region, zone=topology.zone, rack=topology.rack)


def topology_from_wire(message: types_pb2.Topology) -> Topology:
    return Topology(message.region, message.zone, message.rack)


def health_to_wire(sample: HealthSample) -> types_pb2.HealthSample:
    return types_pb2.HealthSample(**asdict(sample))


def health_from_wire(message: types_pb2.HealthSample) -> HealthSample:
    return HealthSample(**{field.name: getattr(message, field.name) for field in fields(HealthSample)})


def score_to_wire(score: HealthScore) -> types_pb2.HealthScore:
    return types_pb2.HealthScore(
        total=score.total,
        components=score.components,
        first_byte_seconds=score.first_byte_seconds,
        seconds_per_mib=score.seconds_per_mib,
    )


def score_from_wire(message: types_pb2.HealthScore) -> HealthScore:
    return HealthScore(message.total, dict(message.components), message.first_byte_seconds, message.seconds_per_mib)


def inventory_to_wire(inventory: Inventory) -> tracker_pb2.Inventory:
    return tracker_pb2.Inventory(count=inventory.count, digests_xor=inventory.digests_xor)


def inventory_from_wire(message: tracker_pb2.Inventory) -> Inventory:
    return Inventory(message.count, message.digests_xor)


def node_to_wire(node: Node) -> types_pb2.Node:
    return types_pb2.Node(
        id=node.id,
        epoch=node.epoch,
        address=address_to_wire(node.address),
        topology=topology_to_wire(node.topology),
        state=_STATE_TO_WIRE[node.state],
        reason=node.reason,
        state_since_unix_ms=node.state_since_unix_ms,
        version=node.version,
        sequence=node.sequence,
        labels=dict(node.labels),
        health=health_to_wire(node.health) if node.health else None,
        score=score_to_wire(node.score) if node.score else None,
        blob_count=node.blob_count,
        flaps=node.flaps,
    )


def node_from_wire(message: types_pb2.Node) -> Node:
    """Translate a node; an unknown state counts as DOWN."""
    return Node(
        id=message.id,
        epoch=message.epoch,
        address=Address(message.address.host, message.address.port),
        topology=topology_from_wire(message.topology),
        state=_STATE_FROM_WIRE.get(message.state, NodeState.DOWN),
        reason=message.reason,
        state_since_unix_ms=message.state_since_unix_ms,
        version=message.version,
        sequence=message.sequence,
        labels=dict(message.labels),
        health=health_from_wire(message.health) if message.HasField("health") else None,
        score=score_from_wire(message.score) if message.HasField("score") else None,
        blob_count=message.blob_count,
        flaps=message.flaps,
    )


def held_blob_to_wire(blob: HeldBlob) -> tracker_pb2.HeldBlob:
    return tracker_pb2.HeldBlob(digest=str(blob.digest), size_bytes=blob.size_bytes)


def held_blob_from_wire(message: tracker_pb2.HeldBlob) -> HeldBlob:
    """Raises DigestInvalid: if the digest is malformed."""
    return HeldBlob(Digest.parse(message.digest), message.size_bytes)


def held_image_to_wire(image: HeldImage) -> tracker_pb2.HeldImage:
    return tracker_pb2.HeldImage(
        name=image.name,
        target_digest=str(image.target),
        target_media_type=image.target_media_type,
        target_size_bytes=image.target_size_bytes,
        content_bytes=image.content_bytes,
        complete=image.complete,
        updated_at_unix_ms=image.updated_at_unix_ms,
    )


def held_image_from_wire(message: tracker_pb2.HeldImage) -> HeldImage:
    """Raises DigestInvalid: if the digest is malformed."""
    return HeldImage(
        message.name,
        Digest.parse(message.target_digest),
        message.target_media_type,
        message.target_size_bytes,
        message.content_bytes,
        message.complete,
        message.updated_at_unix_ms,
    )


def located_to_wire(digest: Digest, holders: Iterable[Holder]) -> tracker_pb2.LocatedBlob:
    """Translate one answer; the nodes themselves travel once, in `LocateResponse.nodes`."""
    entries = [tracker_pb2.Holder(node_id=holder.node.id, size_bytes=holder.size_bytes) for holder in holders]
    return tracker_pb2.LocatedBlob(digest=str(digest), holders=entries)


def located_from_wire(response: tracker_pb2.LocateResponse) -> dict[Digest, tuple[Holder, ...]]:
    """Translate a whole answer; holders whose node is not described are left out."""
    nodes = {message.id: node_from_wire(message) for message in response.nodes}
    return {
        Digest.parse(blob.digest): tuple(
            Holder(nodes[entry.node_id], entry.size_bytes) for entry in blob.holders if entry.node_id in nodes
        )
        for blob in response.blobs
    }


def image_summary_to_wire(image: ImageSummary) -> tracker_pb2.ImageSummary:
    return tracker_pb2.ImageSummary(
        name=image.name,
        target_digest=str(image.target),
        content_bytes=image.content_bytes,
        complete_node_ids=image.complete_node_ids,
        other_node_ids=image.other_node_ids,
        updated_at_unix_ms=image.updated_at_unix_ms,
    )


def image_summary_from_wire(message: tracker_pb2.ImageSummary) -> ImageSummary:
    return ImageSummary(
        message.name,
        Digest.parse(message.target_digest),
        message.content_bytes,
        tuple(message.complete_node_ids),
        tuple(message.other_node_ids),
        message.updated_at_unix_ms,
    )
