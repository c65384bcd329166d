from __future__ import annotations

import random

import hypothesis
from hypothesis import strategies as st

from stafett.common.cluster import Address, HeldImage, Node, NodeState
from stafett.common.digest import Digest
from stafett.common.topology import Topology, tier_between
from stafett.tracker.image_names import ImageEntry, newest, summarize
from stafett.tracker.proximity import Entry, Member, bucket_of, choose

PLACES = [Topology(region, zone, rack) for region in "ab" for zone in "ab" for rack in "ab"]
HERE = PLACES[0]


def member(node_id: str, place: Topology, state: NodeState, incarnation: int, epoch: int = 5) -> Member:
    return Member(Node(node_id, epoch, Address("127.0.0.1", 1), place, state), incarnation)


def entry(node_id: str, *, incarnation: int = 1, epoch: int = 5) -> Entry:
    return Entry(node_id, epoch, incarnation, 10)


members = st.lists(
    st.tuples(st.sampled_from(PLACES), st.sampled_from(list(NodeState)), st.sampled_from([1, 2])),
    max_size=40,
)


@hypothesis.given(members, st.integers(1, 20), st.integers(0, 1000))
def test_chosen_holders_can_serve_and_come_nearest_first(
    drawn: list[tuple[Topology, NodeState, int]], most: int, seed: int
) -> None:
    known = {f"n{i}": member(f"n{i}", place, state, now) for i, (place, state, now) in enumerate(drawn)}
    entries = [entry(f"n{i}") for i in range(len(drawn))]
    chosen = choose([*entries, entry("unknown")], known, "n0", HERE, most, random.Random(seed))
    others = [found for node_id, found in known.items() if found.incarnation == 1 and node_id != "n0"]
    ready = [found for found in others if found.node.state is NodeState.READY]
    fit = ready or [found for found in others if found.node.state is NodeState.SUSPECT]
    assert len(chosen) == min(most, len(fit))
    assert {holder.node.id for holder in chosen} <= {found.node.id for found in fit}
    tiers = [tier_between(HERE, holder.node.topology) for holder in chosen]
    assert tiers == sorted(tiers)
    assert not fit or tiers[0] == min(tier_between(HERE, found.node.topology) for found in fit)


def test_a_farther_tier_gets_a_quarter_of_the_places() -> None:
    known = {f"near{i}": member(f"near{i}", HERE, NodeState.READY, 1) for i in range(30)}
    known |= {f"far{i}": member(f"far{i}", PLACES[-1], NodeState.READY, 1) for i in range(30)}
    chosen = choose([entry(node_id) for node_id in known], known, "", HERE, 16, random.Random(1))
    assert [holder.node.topology for holder in chosen] == [HERE] * 12 + [PLACES[-1]] * 4


def test_an_entry_is_void_only_when_a_later_process_has_replaced_its_own() -> None:
    now = member("n", HERE, NodeState.READY, incarnation=2, epoch=5)
    assert entry("n", incarnation=1, epoch=4).void(now)
    assert not entry("n", incarnation=2, epoch=4).void(now)
    assert not entry("n", incarnation=3, epoch=6).void(now)
    assert not entry("n", incarnation=3, epoch=6).void(None)


@hypothesis.given(st.tuples(st.text(), st.text(), st.text()), st.tuples(st.text(), st.text(), st.text()))
def test_two_places_never_share_a_bucket(one: tuple[str, str, str], other: tuple[str, str, str]) -> None:
    buckets = bucket_of(Topology(*one)), bucket_of(Topology(*other))
    assert (buckets[0] == buckets[1]) == (one == other)
    assert buckets[0].count("/") == 2


def held(target: Digest, updated: int, *, complete: bool = True) -> HeldImage:
    return HeldImage("r.io/a:b", target, "application/json", 5, 50, complete, updated)


def test_a_name_means_what_the_newest_live_node_says() -> None:
    old, new, newer = Digest.of(b"old"), Digest.of(b"new"), Digest.of(b"newer")
    known = {
        "a": member("a", HERE, NodeState.READY, 1),
        "b": member("b", HERE, NodeState.DRAINING, 1),
        "c": member("c", HERE, NodeState.READY, 1),
        "down": member("down", HERE, NodeState.DOWN, 1),
    }
    entries = [
        ImageEntry("a", 1, held(old, 1)),
        ImageEntry("b", 1, held(new, 2)),
        ImageEntry("c", 1, held(new, 1, complete=False)),
        ImageEntry("down", 1, held(newer, 9)),
        ImageEntry("a", 2, held(newer, 9)),
    ]
    meant = newest(entries, known)
    assert meant is not None
    assert meant.target == new
    summary = summarize("r.io/a:b", entries, known)
    assert summary is not None
    assert summary.complete_node_ids == ("b",)
    assert summary.other_node_ids == ("a", "c")
    assert summarize("r.io/a:b", entries[3:], known) is None
