"""Whatever happens on the way, the tracker ends up with what the node holds."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from stafett.common.cluster import Announcement, HeldImage
from stafett.common.digest import Digest
from stafett.common.inventory import Inventory
from stafett.node import outbox
from stafett.node.outbox import Outbox

DIGESTS = [Digest.of(bytes([number])) for number in range(6)]
NAMES = ["r.test/a:1", "r.test/b:1", "r.test/c:1"]

blob_sets = st.sets(st.sampled_from(DIGESTS)).map(lambda digests: {digest: 10 for digest in digests})
image_sets = st.dictionaries(st.sampled_from(NAMES), st.sampled_from(DIGESTS)).map(
    lambda targets: {name: held_image(name, target) for name, target in targets.items()}
)


def held_image(name: str, target: Digest = DIGESTS[0]) -> HeldImage:
    return HeldImage(name, target, "application/json", 10, 100, True, 1)


class TrackerModel:
    """What a tracker knows of one node."""

    def __init__(self) -> None:
        self.blobs: dict[Digest, int] = {}
        self.images: dict[str, HeldImage] = {}

    def apply(self, said: Announcement) -> None:
        if said.reset:
            self.blobs, self.images = {}, {}
        self.blobs.update({blob.digest: blob.size_bytes for blob in said.holds})
        self.images.update({image.name: image for image in said.images})
        for digest in said.withdraws:
            self.blobs.pop(digest, None)
        for name in said.withdrawn_images:
            self.images.pop(name, None)


class OutboxMachine(RuleBasedStateMachine):
    """A node whose session breaks, and a tracker that forgets, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self._patch = pytest.MonkeyPatch()
        self._patch.setattr(outbox, "BLOBS_MAX", 2)
        self._patch.setattr(outbox, "IMAGES_MAX", 1)
        self.outbox = Outbox()
        self.tracker = TrackerModel()
        self.blobs: dict[Digest, int] = {}
        self.images: dict[str, HeldImage] = {}
        self.on_the_way: list[Announcement] = []
        self.reset_expected = False

    def teardown(self) -> None:
        self.drain()
        self._patch.undo()

    def drain(self) -> None:
        """Let everything be said; the two then agree, and so say both."""
        for _ in range(100):
            self.say()
            if not self.on_the_way:
                break
            self.acknowledge()
        assert self.tracker.blobs == self.blobs
        assert self.tracker.images == self.images
        assert self.outbox.told == Inventory.of(self.blobs)
        assert self.outbox.settled_inventory == self.outbox.told

    @rule(blobs=blob_sets, images=image_sets)
    def want(self, blobs: dict[Digest, int], images: dict[str, HeldImage]) -> None:
        self.blobs, self.images = blobs, images
        self.outbox.want(blobs, images)

    @rule()
    def say(self) -> None:
        said = self.outbox.next()
        if said is not None:
            assert said.reset == self.reset_expected
            self.reset_expected = False
            self.on_the_way.append(said)

    @precondition(lambda self: self.on_the_way)
    @rule()
    def acknowledge(self) -> None:
        self.tracker.apply(self.on_the_way.pop(0))
        self.outbox.confirmed()

    @rule(arrived=st.booleans())
    def lose_the_session(self, arrived: bool) -> None:
        """The session breaks, before or after the tracker has heard the last message, and the node registers again."""
        for said in self.on_the_way:
            if arrived:
                self.tracker.apply(said)
            self.reset_expected = self.reset_expected or said.reset
        self.on_the_way.clear()
        self.outbox.session_lost()
        if self.outbox.told != Inventory.of(self.tracker.blobs):
            self.start_over()

    @rule()
    def tracker_forgets(self) -> None:
        """The tracker has lost its index and orders a full announcement; what is on the way still arrives."""
        self.tracker = TrackerModel()
        self.start_over()

    @rule()
    def agree(self) -> None:
        self.drain()

    def start_over(self) -> None:
        self.outbox.start_over()
        self.reset_expected = True

    @invariant()
    def at_most_one_is_under_way(self) -> None:
        assert len(self.on_the_way) <= 1

    @invariant()
    def batches_keep_their_limits(self) -> None:
        for said in self.on_the_way:
            assert max(len(said.holds), len(said.withdraws)) <= 2
            assert max(len(said.images), len(said.withdrawn_images)) <= 1


TestOutbox = OutboxMachine.TestCase
TestOutbox.settings = settings(max_examples=150, stateful_step_count=25)


def said_by(box: Outbox) -> list[Announcement]:
    """Drain an outbox, confirming each message."""
    messages = []
    while said := box.next():
        messages.append(said)
        box.confirmed()
    return messages


def test_a_large_inventory_goes_out_in_batches_and_only_the_first_resets() -> None:
    blobs = {Digest.of(str(number).encode()): number for number in range(2_500)}
    images = {f"r.test/i:{number}": held_image(f"r.test/i:{number}") for number in range(450)}
    box = Outbox()
    box.want(blobs, images)
    box.start_over()
    messages = said_by(box)
    assert [len(said.holds) for said in messages] == [1000, 1000, 500]
    assert [len(said.images) for said in messages] == [200, 200, 50]
    assert [said.reset for said in messages] == [True, False, False]
    box.want({}, {})
    messages = said_by(box)
    assert [len(said.withdraws) for said in messages] == [1000, 1000, 500]
    assert [len(said.withdrawn_images) for said in messages] == [200, 200, 50]
    assert box.told == Inventory()


def test_an_empty_node_still_says_reset_when_everything_is_asked_for() -> None:
    box = Outbox()
    box.start_over()
    assert said_by(box) == [Announcement(reset=True)]


def test_nothing_is_said_twice() -> None:
    box = Outbox()
    box.want({DIGESTS[0]: 1}, {NAMES[0]: held_image(NAMES[0])})
    assert len(said_by(box)) == 1
    box.want({DIGESTS[0]: 1}, {NAMES[0]: held_image(NAMES[0])})
    assert said_by(box) == []


def test_an_acknowledgement_of_nothing_is_ignored() -> None:
    box = Outbox()
    box.want({DIGESTS[0]: 1}, {})
    box.confirmed()
    assert box.told == Inventory()
    assert box.settled_inventory is None
