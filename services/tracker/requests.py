"""Reads requests off the wire and refuses malformed ones, naming the field."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

from stafett.api.v1 import tracker_pb2
from stafett.common import wire
from stafett.common.cluster import Announcement, HeldImage, Registration, check_node_id
from stafett.common.digest import Digest
from stafett.common.errors import DigestInvalid, NameInvalid, RequestInvalid
from stafett.common.reference import Reference
from stafett.common.relaying import Left, Phase
from stafett.common.topology import Topology
from stafett.tracker.lookup import Question
from stafett.tracker.membership_store import Experienced
from stafett.tracker.outcomes import PeerReport
from stafett.tracker.relay_decision import Ask

DIGESTS_MAX = 1_000
IMAGES_MAX = 200
REPORTS_MAX = 1_000
HOLDERS_MAX = 64
LEFT_MAX = 64
_HOLDERS_DEFAULT = 16
_TEXT_MAX = 253
_SECONDS_MAX = 86_400.0
_LABELS_MAX = 64
_HOST = re.compile(r"[A-Za-z0-9._:%-]{1,253}")
_MEDIA_TYPE = re.compile(r"[A-Za-z0-9][A-Za-z0-9!#$&^_.+/-]{0,254}")

Item = TypeVar("Item")
Parsed = TypeVar("Parsed")


def registration(message: tracker_pb2.Register) -> Registration:
    """Read a Register. Raises RequestInvalid."""
    address = wire.address_from_wire(message.address)
    if not _HOST.fullmatch(address.host):
        raise RequestInvalid("address.host", "must be an IP address or DNS name")
    return Registration(
        node_id=check_node_id(message.node_id),
        incarnation=message.incarnation,
        address=address,
        topology=topology(message.topology.region, message.topology.zone, message.topology.rack),
        labels=_labels(message.labels),
        version=_short("version", message.version),
    )


def announcement(message: tracker_pb2.Announce) -> Announcement:
    """Read an Announce. Raises RequestInvalid."""
    return Announcement(
        reset=message.reset,
        holds=_each("holds", message.holds, DIGESTS_MAX, wire.held_blob_from_wire),
        withdraws=_each("withdraws", message.withdraws, DIGESTS_MAX, Digest.parse),
        images=_each("images", message.images, IMAGES_MAX, _image),
        withdrawn_images=_each("withdrawn_images", message.withdrawn_images, DIGESTS_MAX, image_name),
    )


def peer_reports(message: tracker_pb2.ReportOutcomesRequest) -> tuple[str, tuple[PeerReport, ...]]:
    """Read a gateway's batch: who reports, and what. Raises RequestInvalid."""
    return check_node_id(message.reporter), _each("outcomes", message.outcomes, REPORTS_MAX, _peer_report)


def digests(message: tracker_pb2.LocateRequest) -> tuple[Digest, ...]:
    """Read what a Locate asks for. Raises RequestInvalid."""
    if not message.digests:
        raise RequestInvalid("digests", f"needs 1 to {DIGESTS_MAX}")
    return _each("digests", message.digests, DIGESTS_MAX, Digest.parse)


def question(message: tracker_pb2.LocateRequest) -> Question:
    """Read who asks in a Locate. Raises RequestInvalid."""
    if message.max_holders > HOLDERS_MAX:
        raise RequestInvalid("max_holders", f"must be 0 to {HOLDERS_MAX}")
    if message.node_id:
        check_node_id(message.node_id)
    place = topology(message.topology.region, message.topology.zone, message.topology.rack)
    return Question(message.node_id, place, message.max_holders or _HOLDERS_DEFAULT)


def relay_ask(message: tracker_pb2.RelayRequest) -> Ask:
    """Read what a host tells of a blob that it is receiving. Raises RequestInvalid."""
    try:
        phase = Phase(message.phase)
    except ValueError:
        raise RequestInvalid("phase", "must be enter, stay, done or leave") from None
    if len(message.left) > LEFT_MAX:
        raise RequestInvalid("left", f"has more than {LEFT_MAX} entries")
    return Ask(
        check_node_id(message.node_id),
        topology(message.topology.region, message.topology.zone, message.topology.rack),
        phase,
        message.received_bytes,
        message.size_bytes,
        message.ingest_open,
        message.parent,
        message.token,
        {left.node_id: _why_left(left) for left in message.left},
    )


def topology(region: str, zone: str, rack: str) -> Topology:
    """Read a place. Raises RequestInvalid: if a part is longer than 253 characters."""
    return Topology(_short("topology.region", region), _short("topology.zone", zone), _short("topology.rack", rack))


def image_name(text: str) -> str:
    """Return text if it is a canonical image name with a tag. Raises NameInvalid."""
    reference = Reference.parse(text)
    if reference.digest or reference.tagged_name != text:
        raise NameInvalid(text, "must be registry/repository:tag in full")
    return text


def _each(field: str, items: Iterable[Item], most: int, parse: Callable[[Item], Parsed]) -> tuple[Parsed, ...]:
    parsed: list[Parsed] = []
    for index, item in enumerate(items):
        if index == most:
            raise RequestInvalid(field, f"has more than {most} entries")
        try:
            parsed.append(parse(item))
        except (DigestInvalid, NameInvalid, RequestInvalid) as error:
            raise RequestInvalid(f"{field}[{index}]", str(error)) from error
    return tuple(parsed)


def _why_left(message: tracker_pb2.LeftParent) -> Left:
    return Left.FAILED if message.failed else Left.IDLE if message.idle else Left.DECLINED


def _peer_report(message: tracker_pb2.PeerOutcomes) -> PeerReport:
    corrupt = _each("corrupt_digests", message.corrupt_digests, DIGESTS_MAX, Digest.parse)
    means = (message.first_byte_seconds, message.seconds_per_mib)
    if not all(0 <= mean < _SECONDS_MAX for mean in means):
        raise RequestInvalid("first_byte_seconds, seconds_per_mib", f"must be 0 to {_SECONDS_MAX:.0f}")
    silent = message.refused + message.stalled
    counts = (message.succeeded, silent + len(corrupt), message.overloaded)
    return PeerReport(Experienced(message.node_id, message.epoch, *counts, *means), silent > 0, corrupt)


def _image(message: tracker_pb2.HeldImage) -> HeldImage:
    image_name(message.name)
    if not _MEDIA_TYPE.fullmatch(message.target_media_type):
        raise RequestInvalid("target_media_type", "must be a media type")
    return wire.held_image_from_wire(message)


def _labels(labels: Mapping[str, str]) -> dict[str, str]:
    if len(labels) > _LABELS_MAX:
        raise RequestInvalid("labels", f"has more than {_LABELS_MAX} entries")
    return {_short("labels", key): _short("labels", value) for key, value in labels.items()}


def _short(field: str, text: str) -> str:
    if len(text) > _TEXT_MAX:
        raise RequestInvalid(field, f"is longer than {_TEXT_MAX} characters")
    return text
