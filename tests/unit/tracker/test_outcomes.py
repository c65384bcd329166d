"""What a tracker makes of gateways' reports. The scripted store counts reporters; probes answer as a test says."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import cast

import pytest

from stafett.common.cluster import Address, Node, NodeState
from stafett.common.digest import Digest
from stafett.common.errors import Unavailable
from stafett.tracker.liveness import Event
from stafett.tracker.membership import Membership
from stafett.tracker.membership_store import Due, Experienced, MembershipStore
from stafett.tracker.outcomes import PROBES_AT_ONCE, Outcomes, PeerReport
from stafett.tracker.proximity import Member

D = Digest.of(b"a layer")


class World:
    """Nodes n0, n1...; Redis, which may be away; and what was asked of them."""

    def __init__(self, count: int = 1, *, answer: bool | None = False) -> None:
        self.members = {
            f"n{port}": Member(Node(f"n{port}", 5, Address("127.0.0.1", port), state=NodeState.READY), 1)
            for port in range(count)
        }
        self.redis_up = True
        self.reporters: dict[str, set[str]] = {}
        self.probed: list[int] = []
        self.probing = self.most_probing = 0
        self.answer = answer
        self.verified: list[tuple[str, Digest]] = []
        self.frozen: set[str] = set()
        self.judged: list[Due] = []
        self.outcomes = Outcomes(cast(MembershipStore, self), cast(Membership, self), self._probe, verify=self._verify)

    async def add_experience(self, reports: Sequence[Experienced]) -> None:
        if not self.redis_up:
            raise Unavailable("Redis", "killed")

    async def report(self, node_ids: Sequence[str], reporter: str) -> list[int]:
        for node_id in node_ids:
            self.reporters.setdefault(node_id, set()).add(reporter)
        return [len(self.reporters[node_id]) for node_id in node_ids]

    async def apply(self, due: Due) -> bool:
        self.judged.append(due)
        return True

    async def _probe(self, address: Address) -> bool | None:
        self.probed.append(address.port)
        self.probing += 1
        self.most_probing = max(self.most_probing, self.probing)
        await asyncio.sleep(0.01)
        self.probing -= 1
        return self.answer

    async def _verify(self, node: Node, digest: Digest) -> None:
        if node.id in self.frozen:
            await asyncio.Event().wait()
        self.verified.append((node.id, digest))

    @asynccontextmanager
    async def at_work(self) -> AsyncIterator[None]:
        """Let the loops run; at the end everything that was to be done is."""
        loops = [asyncio.create_task(loop()) for loop in (self.outcomes.judge_accused, self.outcomes.verify_doubtful)]
        yield
        before = -1
        while self.probing or before != (before := len(self.probed) + len(self.judged) + len(self.verified)):  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        for loop in loops:
            loop.cancel()
        await asyncio.wait(loops)


def failed(node_id: str, epoch: int = 5, *, silent: bool = True, corrupt: tuple[Digest, ...] = ()) -> PeerReport:
    return PeerReport(Experienced(node_id, epoch, 0, 1, 0, 0.0, 0.0), silent, corrupt)


@pytest.mark.parametrize(
    ("reporters", "answer", "judged"),
    [
        (["g1", "g2"], False, True),
        (["g1", "g1"], False, False),
        (["g1", "g2"], True, False),
        (["g1", "g2"], None, False),
    ],
    ids=["two and silent", "one alone", "two, but it answers", "two, but the tracker was paused itself"],
)
async def test_a_node_is_suspect_if_two_gateways_accuse_it_and_it_is_silent(
    reporters: list[str], answer: bool | None, judged: bool
) -> None:
    world = World(answer=answer)
    async with world.at_work():
        for reporter in reporters:
            await world.outcomes.take(reporter, [failed("n0")])
    assert world.judged == ([Due("n0", 5, Event.REPORTED)] if judged else [])


async def test_many_gateways_accusing_many_nodes_cost_one_probe_for_each_node_and_few_at_once() -> None:
    world = World(count=50)
    async with world.at_work():
        accusations = [failed(node_id) for node_id in world.members]
        await asyncio.gather(*(world.outcomes.take(f"g{number}", accusations) for number in range(100)))
    assert sorted(world.probed) == list(range(50))
    assert world.most_probing <= PROBES_AT_ONCE
    assert {due.node_id for due in world.judged} == world.members.keys()


async def test_who_is_no_longer_ready_is_not_probed() -> None:
    world = World(count=2)
    world.members["n0"] = Member(Node("n0", 5, Address("127.0.0.1", 0), state=NodeState.DRAINING), 1)
    async with world.at_work():
        for reporter in ("g1", "g2"):
            await world.outcomes.take(reporter, [failed("n0"), failed("n1", epoch=4)])
    assert world.probed == []


async def test_wrong_bytes_are_looked_into_though_redis_is_away() -> None:
    world = World()
    world.redis_up = False
    async with world.at_work():
        with pytest.raises(Unavailable):
            await world.outcomes.take("g1", [failed("n0", corrupt=(D,))])
    assert world.verified == [("n0", D)]


async def test_wrong_bytes_are_looked_into_though_the_node_has_moved_to_another_tracker_since() -> None:
    world = World()
    async with world.at_work():
        await world.outcomes.take("g1", [failed("n0", epoch=4, silent=False, corrupt=(D,))])
    assert world.verified == [("n0", D)]


async def test_wrong_bytes_accuse_nobody_of_silence() -> None:
    world = World()
    async with world.at_work():
        for reporter in ("g1", "g2"):
            await world.outcomes.take(reporter, [failed("n0", silent=False, corrupt=(D,))])
    assert world.probed == []


async def test_a_frozen_node_keeps_no_other_from_reading_its_blobs_again() -> None:
    world = World(count=3)
    world.frozen = {"n0"}
    async with world.at_work():
        await world.outcomes.take("g1", [failed(node_id, silent=False, corrupt=(D,)) for node_id in world.members])
        await world.outcomes.take("g2", [failed("n0", silent=False, corrupt=(D,))])
    assert world.verified == [("n1", D), ("n2", D)]
