"""Decides what an image name means in the cluster, from what each node last announced. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from stafett.common.cluster import HeldImage, ImageSummary, NodeState
from stafett.tracker.proximity import Member


@dataclass(frozen=True, slots=True)
class ImageEntry:
    """An image name on a node, as announced by one incarnation of it."""

    node_id: str
    incarnation: int
    image: HeldImage


def newest(entries: Iterable[ImageEntry], members: Mapping[str, Member]) -> HeldImage | None:
    """Pick what the live node that updated the name last says; of equals a complete one."""
    return max(
        (entry.image for entry in _live(entries, members)),
        key=lambda image: (image.updated_at_unix_ms, image.complete, image.target),
        default=None,
    )


def summarize(name: str, entries: Iterable[ImageEntry], members: Mapping[str, Member]) -> ImageSummary | None:
    """Sum up an image name over the live nodes; None if no live node has it."""
    live = sorted(_live(entries, members), key=lambda entry: entry.node_id)
    meant = newest(live, members)
    if meant is None:
        return None
    whole = [entry for entry in live if entry.image.complete and entry.image.target == meant.target]
    complete_ids = tuple(entry.node_id for entry in whole)
    return ImageSummary(
        name=name,
        target=meant.target,
        content_bytes=max((entry.image.content_bytes for entry in whole), default=0),
        complete_node_ids=complete_ids,
        other_node_ids=tuple(entry.node_id for entry in live if entry.node_id not in complete_ids),
        updated_at_unix_ms=meant.updated_at_unix_ms,
    )


def _live(entries: Iterable[ImageEntry], members: Mapping[str, Member]) -> list[ImageEntry]:
    return [entry for entry in entries if _is_live(entry, members.get(entry.node_id))]


def _is_live(entry: ImageEntry, member: Member | None) -> bool:
    return member is not None and member.incarnation == entry.incarnation and member.node.state is not NodeState.DOWN
