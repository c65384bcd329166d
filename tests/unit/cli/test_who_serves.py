"""What `stafett explain` says where chance decides."""

from __future__ import annotations

import random
from collections import Counter

from stafett.cli.who_serves import usual_ranking
from stafett.common.cluster import Address, HealthScore, Holder, Node
from stafett.common.digest import Digest
from stafett.common.topology import Topology
from stafett.gateway.selection import Asking, Candidate, least_loaded, nearest, rank, weigh

D = Digest.of(b"some layer")
ME = Asking("me", Topology("eu", "a"))


def candidates(**scores: float) -> list[Candidate]:
    found = [
        Holder(Node(name, 1, Address(name, 1), Topology("eu", "a"), score=HealthScore(score)), 10)
        for name, score in scores.items()
    ]
    return weigh(found, ME, {})


def test_the_first_is_whom_gateways_ask_most_and_its_share_is_told() -> None:
    among = candidates(best=1.0, good=0.8, poor=0.5)
    ranked, reason = usual_ranking(nearest, among, D)
    assert ranked[0].node.id == "best"
    told = int(reason.split(" in ")[-1].partition("%")[0])
    asked = Counter(rank(nearest, among, D, random.Random(f"gateway {seed}"))[0].node.id for seed in range(2_000))
    assert abs(asked["best"] / 20 - told) < 12
    assert usual_ranking(nearest, among, D) == (ranked, reason), "the same each time"


def test_where_nothing_is_left_to_chance_or_to_anybody_no_share_is_told() -> None:
    assert "draws" not in usual_ranking(nearest, candidates(best=1.0, poor=0.5), D)[1], "both are drawn"
    assert "draws" not in usual_ranking(least_loaded, candidates(one=1.0), D)[1]
    assert usual_ranking(nearest, [], D) == ((), "nobody can serve it")
