"""Who is chosen, and who never."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stafett.common.cluster import Address, HealthSample, HealthScore, Holder, Node, NodeState
from stafett.common.digest import Digest
from stafett.common.topology import Tier, Topology
from stafett.gateway.selection import (
    ALGORITHMS,
    SPILL_FACTOR,
    Algorithm,
    Asking,
    Candidate,
    PeerView,
    agreed_size,
    least_loaded,
    nearest,
    rank,
    rendezvous,
    usable,
    weigh,
    why_first,
    worth_leaving,
)

D = Digest.of(b"some layer")
NAMES = [f"n{number}" for number in range(8)]
places = st.builds(
    Topology, st.sampled_from(["r1", "r2"]), st.sampled_from(["z1", "z2"]), st.sampled_from(["k1", "k2"])
)
seconds = st.floats(0.001, 10) | st.none()
scores = st.builds(HealthScore, st.floats(0, 1), st.just({}), st.just(0.0), st.sampled_from([0.0, 0.01, 1.0]))
samples = st.builds(HealthSample, st.integers(0, 64), st.sampled_from([0, 64]))
nodes = st.builds(
    Node,
    id=st.sampled_from(NAMES),
    epoch=st.integers(1, 3),
    address=st.builds(Address, st.sampled_from(["h1", "h2", "h3"]), st.just(1)),
    topology=places,
    state=st.sampled_from(list(NodeState)),
    sequence=st.integers(0, 2),
    score=scores | st.none(),
    health=samples | st.none(),
)
holders = st.lists(st.builds(Holder, nodes, st.just(10)), max_size=12, unique_by=lambda h: h.node.id)
beliefs = st.lists(nodes, max_size=8).map(lambda known: {node.id: node for node in known})
asking = st.builds(Asking, st.sampled_from(["n0", "me"]), places)
views = st.dictionaries(st.sampled_from(NAMES), st.builds(PeerView, st.integers(0, 5), seconds, seconds, st.booleans()))
algorithms = st.sampled_from(list(ALGORITHMS.values()))


def ranked(
    found: Sequence[Holder],
    me: Asking,
    seen: Mapping[str, PeerView] | None = None,
    believed: Mapping[str, Node] | None = None,
    algorithm: Algorithm = nearest,
    seed: int = 1,
) -> tuple[Candidate, ...]:
    candidates = weigh(usable(found, me, believed or {}), me, seen or {})
    return rank(algorithm, candidates, D, random.Random(seed))


def at(name: str, *, zone: str = "a", rack: str = "", score: HealthScore | None = None) -> Holder:
    return Holder(Node(name, 1, Address(name, 1), Topology("eu", zone, rack), score=score), 10)


ME = Asking("me", Topology("eu", "a", "k"))


@given(holders, asking, beliefs, views, algorithms, st.integers())
def test_only_others_in_service_are_chosen_by_the_newest_belief(
    found: list[Holder],
    me: Asking,
    believed: dict[str, Node],
    seen: dict[str, PeerView],
    algorithm: Algorithm,
    seed: int,
) -> None:
    order = ranked(found, me, seen, believed, algorithm, seed)
    assert len({candidate.node.state for candidate in order}) <= 1, "suspects only where nobody is READY"
    for candidate in order:
        assert candidate.node.id != me.node_id
        assert candidate.node.state in (NodeState.READY, NodeState.SUSPECT)
        if candidate.node.id in believed:
            assert candidate.node.rank >= believed[candidate.node.id].rank, "an older description is never dialled"


@given(holders, asking, views, algorithms, st.integers())
def test_nobody_is_lost_or_offered_twice_and_the_failing_come_last(
    found: list[Holder], me: Asking, seen: dict[str, PeerView], algorithm: Algorithm, seed: int
) -> None:
    order = ranked(found, me, seen, algorithm=algorithm, seed=seed)
    others = [holder for holder in found if holder.node.id != me.node_id]
    ready = {holder.node.id for holder in others if holder.node.state is NodeState.READY}
    suspect = {holder.node.id for holder in others if holder.node.state is NodeState.SUSPECT}
    assert sorted(candidate.node.id for candidate in order) == sorted(ready or suspect)
    assert [candidate.failing for candidate in order] == sorted(candidate.failing for candidate in order)


@given(holders, asking, beliefs, views, algorithms, st.integers())
def test_the_same_seed_gives_the_same_order(
    found: list[Holder],
    me: Asking,
    believed: dict[str, Node],
    seen: dict[str, PeerView],
    algorithm: Algorithm,
    seed: int,
) -> None:
    first = ranked(found, me, seen, believed, algorithm, seed)
    assert ranked(found[::-1], me, seen, believed, algorithm, seed) == first


@given(holders, asking, st.integers())
def test_with_nothing_known_nearer_tiers_come_first(found: list[Holder], me: Asking, seed: int) -> None:
    unknown = [replace(holder, node=replace(holder.node, score=None)) for holder in found]
    tiers = [candidate.tier for candidate in ranked(unknown, me, seed=seed)]
    assert tiers == sorted(tiers)


NEAR_TO_FAR = (Topology("eu", "a", "k"), Topology("eu", "a", "l"), Topology("eu", "b", "k"), Topology("us", "a", "k"))


@settings(max_examples=30)
@given(
    st.lists(st.sampled_from(NEAR_TO_FAR), min_size=2, max_size=5),
    st.lists(st.floats(0.5, 1), min_size=5, max_size=5),
    algorithms,
    st.integers(),
)
def test_under_growing_load_no_tier_is_starved(
    places: list[Topology], speeds: list[float], algorithm: Algorithm, seed: int
) -> None:
    """Each stream stays open: sooner or later the nearer tiers are too dear and each farther one gets streams."""
    names = NAMES[: len(places)]
    found = [Holder(Node(name, 1, Address(name, 1), place), 10) for name, place in zip(names, places, strict=True)]
    pending: Counter[str] = Counter()
    rng = random.Random(seed)
    for _ in range(len(places) * round(SPILL_FACTOR[Tier.WORLD] * max(speeds) / min(speeds)) + 10):
        seen = {name: PeerView(pending[name], None, speed) for name, speed in zip(names, speeds, strict=False)}
        pending[rank(algorithm, weigh(found, ME, seen), D, rng)[0].node.id] += 1
        if {places[names.index(name)] for name in pending} == set(places):
            return
    raise AssertionError(f"a tier never got a stream: {pending}")


def test_of_two_in_a_tier_the_one_with_fewer_streams_is_first() -> None:
    both = [at("busy"), at("idle")]
    for seed in range(20):
        assert ranked(both, ME, {"busy": PeerView(3)}, seed=seed)[0].node.id == "idle"


def test_of_two_in_a_tier_the_faster_and_the_healthier_is_first() -> None:
    slow_seen = {"n1": PeerView(seconds_per_mib=0.1), "n2": PeerView(seconds_per_mib=0.01)}
    sick = [at("n1", score=HealthScore(0.2)), at("n2", score=HealthScore(0.9))]
    for seed in range(20):
        assert ranked([at("n1"), at("n2")], ME, slow_seen, seed=seed)[0].node.id == "n2"
        assert ranked(sick, ME, seed=seed)[0].node.id == "n2"


@pytest.mark.parametrize(("pending", "first"), [(0, "near"), (2, "near"), (3, "far")])
def test_a_rack_is_left_for_the_zone_only_when_it_is_more_than_three_times_dearer(pending: int, first: str) -> None:
    order = ranked([at("near", rack="k"), at("far", rack="l")], ME, {"near": PeerView(pending)})
    assert order[0].node.id == first
    assert ("spilled" in why_first(order, nearest)) is (first == "far")


def test_seconds_come_from_own_sight_then_from_reports_then_from_the_tier() -> None:
    reported = HealthScore(1.0, {}, 0.0, 0.5)
    found = [at("own", rack="k", score=reported), at("told", rack="k", score=reported), at("unknown", rack="k")]
    by_name = {c.node.id: c for c in weigh(found, ME, {"own": PeerView(seconds_per_mib=0.1)})}
    assert by_name["own"].seconds_per_mib == 0.1
    assert by_name["told"].seconds_per_mib == 0.5
    assert by_name["unknown"].seconds_per_mib == pytest.approx(0.3), "the median of its tier"


def test_least_loaded_goes_by_streams_whatever_the_tier() -> None:
    busy = replace(at("near", rack="k"), node=replace(at("near", rack="k").node, health=HealthSample(60, 64)))
    order = ranked([busy, at("far", zone="b")], ME, algorithm=least_loaded)
    assert [candidate.node.id for candidate in order] == ["far", "near"]


def test_rendezvous_gives_every_gateway_the_same_holder_and_spreads_digests_by_score() -> None:
    found = [at("n0", score=HealthScore(1.0)), at("n1", score=HealthScore(1.0)), at("n2", score=HealthScore(0.5))]
    firsts: Counter[str] = Counter()
    for number in range(2000):
        digest = Digest.of(str(number).encode())
        orders = {
            rank(rendezvous, weigh(found, Asking(name, Topology("eu", "a")), {}), digest, random.Random(name))[
                0
            ].node.id
            for name in ("g1", "g2")
        }
        assert len(orders) == 1
        firsts.update(orders)
    assert firsts["n0"] == pytest.approx(800, rel=0.15)
    assert firsts["n2"] == pytest.approx(400, rel=0.2)


@given(st.floats(0.001, 5), st.floats(0.001, 5), st.integers(0, 8), st.integers(1, 20))
def test_a_stream_is_left_only_for_one_that_should_give_three_times_as_much(
    serving: float, expected: float, pending: int, streams: int
) -> None:
    one = Candidate(at("one"), Tier.RACK)
    other = Candidate(at("other"), Tier.RACK, pending, seconds_per_mib=expected, measured=True)
    left = worth_leaving(one, serving, math.inf, other, streams)
    assert left is (serving * 0.3 > expected * max(pending + 1, streams))
    assert not worth_leaving(one, serving, math.inf, replace(other, failing=True), streams)


@pytest.mark.parametrize("tier", [Tier.RACK, Tier.ZONE, Tier.REGION])
def test_a_ten_times_slower_holder_is_left_wherever_the_measured_other_is(tier: Tier) -> None:
    other = Candidate(at("other"), tier, seconds_per_mib=0.131, measured=True)
    assert worth_leaving(Candidate(at("one"), Tier.RACK), 1.31, math.inf, other, 1)


@pytest.mark.parametrize(("pace", "best", "left"), [(0.12, math.inf, False), (0.5, math.inf, True), (0.3, 0.03, True)])
def test_a_guess_justifies_leaving_only_what_crawls_or_was_faster_before(pace: float, best: float, left: bool) -> None:
    unmeasured = Candidate(at("other"), Tier.RACK)
    assert worth_leaving(Candidate(at("one"), Tier.RACK), pace, best, unmeasured, 1) is left


def test_the_size_that_most_state_counts() -> None:
    sizes = {"a": 10, "b": 11, "c": 10}
    found = [Holder(Node(name, 1, Address(name, 1)), size) for name, size in sizes.items()]
    assert agreed_size(ranked(found, Asking("me", Topology()))) == 10
