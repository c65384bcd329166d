"""Who is chosen, and who never."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from stafett.common.cluster import Address, Holder, Node, NodeState
from stafett.common.topology import Topology
from stafett.gateway.selection import Asking, agreed_size, rank_nearest

places = st.builds(
    Topology, st.sampled_from(["r1", "r2"]), st.sampled_from(["z1", "z2"]), st.sampled_from(["k1", "k2"])
)
nodes = st.builds(
    Node,
    id=st.sampled_from([f"n{number}" for number in range(8)]),
    epoch=st.integers(1, 3),
    address=st.builds(Address, st.sampled_from(["h1", "h2", "h3"]), st.just(1)),
    topology=places,
    state=st.sampled_from(list(NodeState)),
    sequence=st.integers(0, 2),
)
holders = st.lists(st.builds(Holder, nodes, st.just(10), st.booleans()), max_size=12, unique_by=lambda h: h.node.id)
beliefs = st.lists(nodes, max_size=8).map(lambda known: {node.id: node for node in known})
asking = st.builds(Asking, st.sampled_from(["n0", "me"]), places)
loads = st.dictionaries(st.sampled_from([f"n{number}" for number in range(8)]), st.integers(0, 5))


@given(holders, asking, beliefs, loads, st.integers())
def test_only_ready_complete_others_are_chosen_by_the_newest_belief(
    found: list[Holder], me: Asking, believed: dict[str, Node], pending: dict[str, int], seed: int
) -> None:
    ranked = rank_nearest(found, me, believed, pending, random.Random(seed))
    for candidate in ranked:
        assert candidate.holder.complete
        assert candidate.node.id != me.node_id
        assert candidate.node.state is NodeState.READY
        if candidate.node.id in believed:
            assert candidate.node.rank >= believed[candidate.node.id].rank, "an older description is never dialled"


@given(holders, asking, loads, st.integers())
def test_nearer_tiers_come_first_and_nobody_is_lost_or_offered_twice(
    found: list[Holder], me: Asking, pending: dict[str, int], seed: int
) -> None:
    ranked = rank_nearest(found, me, {}, pending, random.Random(seed))
    assert [candidate.tier for candidate in ranked] == sorted(candidate.tier for candidate in ranked)
    ready = {h.node.id for h in found if h.complete and h.node.state is NodeState.READY} - {me.node_id}
    assert sorted(candidate.node.id for candidate in ranked) == sorted(ready)


@given(holders, asking, beliefs, loads, st.integers())
def test_the_same_seed_gives_the_same_order(
    found: list[Holder], me: Asking, believed: dict[str, Node], pending: dict[str, int], seed: int
) -> None:
    first = rank_nearest(found, me, believed, pending, random.Random(seed))
    assert rank_nearest(found[::-1], me, believed, pending, random.Random(seed)) == first


def test_of_two_in_a_tier_the_one_with_fewer_streams_is_first() -> None:
    both = [Holder(Node(name, 1, Address(name, 1)), 10) for name in ("busy", "idle")]
    for seed in range(20):
        ranked = rank_nearest(both, Asking("me", Topology()), {}, {"busy": 3}, random.Random(seed))
        assert ranked[0].node.id == "idle"


def test_the_size_that_most_state_counts() -> None:
    sizes = {"a": 10, "b": 11, "c": 10}
    found = [Holder(Node(name, 1, Address(name, 1)), size) for name, size in sizes.items()]
    assert agreed_size(rank_nearest(found, Asking("me", Topology()), {}, {}, random.Random(1))) == 10
