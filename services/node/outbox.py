"""What to tell the tracker next: the difference between what the node holds and what the tracker has confirmed. Pure.

At most one announcement is under way; whatever is lost with a session is simply said again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import islice

from stafett.common.cluster import Announcement, HeldBlob, HeldImage
from stafett.common.digest import Digest
from stafett.common.inventory import Inventory

BLOBS_MAX = 1000
IMAGES_MAX = 200


@dataclass
class Outbox:
    """Desired state, confirmed state, and the announcement between them."""

    _blobs: Mapping[Digest, int] = field(default_factory=dict)
    _images: Mapping[str, HeldImage] = field(default_factory=dict)
    _told_blobs: dict[Digest, int] = field(default_factory=dict)
    _told_images: dict[str, HeldImage | None] = field(default_factory=dict)
    """None: a message about the name got lost, so the tracker may or may not have it."""
    _under_way: Announcement | None = None
    _void: bool = False
    _reset_due: bool = False
    _settled: bool = True

    def want(self, blobs: Mapping[Digest, int], images: Mapping[str, HeldImage]) -> None:
        """Set what the node holds now; the mappings must not change afterwards."""
        self._blobs, self._images = blobs, images
        self._settled = False

    def start_over(self) -> None:
        """The tracker knows nothing (any more): say everything again, once what is under way has been confirmed."""
        self._void = self._under_way is not None
        self._told_blobs.clear()
        self._told_images.clear()
        self._reset_due = True
        self._settled = False

    def session_lost(self) -> None:
        """Forget the announcement under way: nobody knows whether it arrived, so it is said again.

        Blobs that differ in consequence show when inventories are compared; image names do not, so they are noted.
        """
        lost, self._under_way = self._under_way, None
        if lost is not None:
            self._reset_due = self._reset_due or lost.reset
            if not self._void:
                names = (*(image.name for image in lost.images), *lost.withdrawn_images)
                self._told_images.update(dict.fromkeys(names))
        self._void = False
        self._settled = False

    def next(self) -> Announcement | None:
        """Take the next announcement; None if one is under way or nothing is left to say."""
        if self._under_way is not None or self._settled:
            return None
        holds = (digest for digest, size in self._blobs.items() if self._told_blobs.get(digest) != size)
        images = (image for name, image in self._images.items() if self._told_images.get(name) != image)
        announcement = Announcement(
            self._reset_due,
            tuple(HeldBlob(digest, self._blobs[digest]) for digest in islice(holds, BLOBS_MAX)),
            tuple(islice((digest for digest in self._told_blobs if digest not in self._blobs), BLOBS_MAX)),
            tuple(islice(images, IMAGES_MAX)),
            tuple(islice((name for name in self._told_images if name not in self._images), IMAGES_MAX)),
        )
        if announcement == Announcement():
            self._settled = True
            return None
        self._reset_due = False
        self._under_way = announcement
        return announcement

    def confirmed(self) -> None:
        """The announcement under way is in the tracker's index."""
        said, self._under_way = self._under_way, None
        void, self._void = self._void, False
        if said is None or void:
            return
        for digest in said.withdraws:
            self._told_blobs.pop(digest, None)
        for name in said.withdrawn_images:
            self._told_images.pop(name, None)
        self._told_blobs.update({blob.digest: blob.size_bytes for blob in said.holds})
        self._told_images.update({image.name: image for image in said.images})

    @property
    def told(self) -> Inventory:
        """Sum of what the tracker has confirmed, for registration."""
        return Inventory.of(self._told_blobs)

    @property
    def settled_inventory(self) -> Inventory | None:
        """The same, but only while nothing is left to say or to confirm, for heartbeats."""
        return self.told if self._settled and self._under_way is None else None
