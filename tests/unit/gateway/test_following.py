"""A host gets a blob from whomever the trackers name, and tells them how far it is."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest

from stafett.common.cluster import Address, Holder
from stafett.common.digest import Digest
from stafett.common.errors import BlobUnknown, CorruptContent, Unavailable
from stafett.common.relaying import Fetch, Left, Phase, Received, Refused, Wait
from stafett.common.topology import Topology
from stafett.gateway.byte_range import Span
from stafett.gateway.following import TreeSources
from stafett.gateway.locator import Locator
from stafett.gateway.metrics import GatewayMetrics
from stafett.gateway.outcomes import Outcomes
from stafett.gateway.ports import RelayAnswer, RelayAsk, RelayFollow
from stafett.gateway.quarantine import Quarantine
from stafett.gateway.relay import Relay
from stafett.gateway.seats import LOOKS, PATIENCE_SECONDS, TREES_REST_SECONDS, Seats
from stafett.gateway.selection import Asking, nearest
from stafett.gateway.transfer import Transfer
from tests.unit.gateway.cluster import CHUNK, FakePeers, FakeTracker, Script, content_of, holder, node

CONTENT = content_of(10 * CHUNK + 77)
SIZE = len(CONTENT)
D = Digest.of(CONTENT)
OPEN = Received(SIZE, 0, 1)


@dataclass
class FakeOwnHost:
    """A host whose download grows as `states` says."""

    states: list[Received | Unavailable | None] = field(default_factory=list)
    ancestors: list[tuple[str, ...]] = field(default_factory=list)
    address: Address = field(default_factory=lambda: Address("me", 1))

    async def receiving(self, digest: Digest, beyond_bytes: int = 0, wait_seconds: float = 0.0) -> Received | None:
        await asyncio.sleep(0)
        state = self.states.pop(0)
        if isinstance(state, Unavailable):
            raise state
        return state

    async def note_ancestors(self, digest: Digest, ancestors: Sequence[str]) -> None:
        self.ancestors.append(tuple(ancestors))


@dataclass
class Bed:
    """A gateway's parts between scripted peers, tracker and own host."""

    relay: Relay
    seats: Seats
    tracker: FakeTracker
    own: FakeOwnHost

    async def pull(self, state: Received = OPEN) -> bytes:
        sources = TreeSources(self.relay, self.seats, D, state, "reg/app")
        transfer = Transfer(self.relay, D, SIZE, Span(0, SIZE, False), sources)
        return b"".join([bytes(piece) async for piece in transfer.pieces()])

    @property
    def told(self) -> list[tuple[Phase, int]]:
        return [(ask.phase, ask.received_bytes) for ask in self.tracker.asked]


@asynccontextmanager
async def bed(
    scripts: dict[str, Script], answers: Sequence[RelayAnswer], holders: tuple[Holder, ...] = ()
) -> AsyncIterator[Bed]:
    tracker, own = FakeTracker({D: holders}, answers=list(answers)), FakeOwnHost()
    async with asyncio.TaskGroup() as group:
        locator = Locator(tracker, group)
        asking = Asking("me", Topology("eu", "a"))
        relay = Relay(
            locator,
            FakePeers(scripts),
            nearest,
            asking,
            Quarantine(),
            0.2,
            GatewayMetrics(),
            Outcomes(tracker),
            random.Random(1),
        )
        yield Bed(relay, Seats(tracker, own, group, relay.metrics), tracker, own)


def follow(name: str, *ancestors: str) -> RelayFollow:
    return RelayFollow(node(name), complete=False, ancestors=ancestors)


async def test_the_named_parent_is_followed_and_the_end_is_told() -> None:
    async with bed({"n1": Script(CONTENT)}, [Wait(), follow("n1", "n0"), Refused("done")]) as parts:
        assert await parts.pull() == CONTENT
    assert parts.own.ancestors == [("n1", "n0")]
    assert parts.told == [(Phase.ENTER, 0), (Phase.ENTER, 0), (Phase.DONE, SIZE)]


async def test_when_a_parent_breaks_another_is_asked_for_at_the_own_offset() -> None:
    scripts = {"n1": Script(CONTENT, breaks_at=3 * CHUNK), "n2": Script(CONTENT)}
    async with bed(scripts, [follow("n1"), follow("n2"), Refused("done")]) as parts:
        assert await parts.pull() == CONTENT
    again = parts.tracker.asked[1]
    assert (again.phase, again.received_bytes, again.left) == (Phase.ENTER, 3 * CHUNK, {"n1": Left.FAILED})
    peers = parts.relay.reader
    assert isinstance(peers, FakePeers)
    assert peers.asked == [("n1", 0), ("n2", 3 * CHUNK)]


async def test_a_claim_sends_the_client_upstream_and_its_growth_is_told() -> None:
    answers: list[RelayAnswer] = [Fetch(7), Fetch(7), Refused("done")]
    async with bed({}, answers) as parts:
        parts.own.states = [Received(SIZE, 500, 1), Received(SIZE, SIZE, 0)]
        parts.tracker.again_after_seconds = 0.0
        with pytest.raises(BlobUnknown):
            await parts.pull()
    assert parts.told == [(Phase.ENTER, 0), (Phase.STAY, 500), (Phase.DONE, SIZE)]
    assert [ask.token for ask in parts.tracker.asked] == [0, 7, 7]
    shown = parts.relay.metrics.render().decode()
    assert f'stafett_gateway_bytes_total{{source="upstream_claim"}} {float(SIZE)}' in shown
    assert "stafett_gateway_upstream_saved_bytes_total 0.0" in shown


@pytest.mark.parametrize("end", [None, Unavailable("own node", "killed")])
async def test_a_fetch_that_is_given_up_or_that_nobody_can_watch_any_more_is_told(end: Unavailable | None) -> None:
    async with bed({}, [Fetch(7), Refused("left")]) as parts:
        parts.own.states = [end] * LOOKS
        with pytest.raises(BlobUnknown):
            await parts.pull()
    assert parts.told == [(Phase.ENTER, 0), (Phase.LEAVE, 0)]


async def test_who_is_refused_is_sent_elsewhere_at_once() -> None:
    async with bed({}, [Refused("nobody has it"), Refused("left")]) as parts:
        with pytest.raises(BlobUnknown):
            await parts.pull()


async def test_without_trackers_the_holders_that_are_known_are_asked() -> None:
    async with bed({"n1": Script(CONTENT)}, [], (holder("n1", SIZE),)) as parts:
        await parts.relay.candidates(D)
        assert await parts.pull() == CONTENT


async def test_a_second_client_of_the_host_reads_what_the_first_one_receives() -> None:
    async with bed({"me": Script(CONTENT)}, []) as parts:
        with parts.seats.receiving(D):
            assert await parts.pull(Received(SIZE, 0, 2)) == CONTENT
    assert parts.told == []


async def test_a_client_that_leaves_gives_its_seat_back() -> None:
    async with bed({"n1": Script(CONTENT)}, [follow("n1"), Refused("left")]) as parts:
        sources = TreeSources(parts.relay, parts.seats, D, OPEN, "reg/app")
        pieces = Transfer(parts.relay, D, SIZE, Span(0, SIZE, False), sources).pieces()
        first = await anext(pieces)
        await pieces.aclose()
        assert not parts.seats.busy(D)
    assert parts.told[-1] == (Phase.LEAVE, len(first))


async def test_patience_counts_what_is_waited_at_the_same_time_once() -> None:
    now = [100.0]
    async with asyncio.TaskGroup() as group:
        seats = Seats(FakeTracker(), FakeOwnHost(), group, GatewayMetrics(), lambda: now[0])
        for _ in range(10):
            now[0] += 1.0
            seats.note_wait("reg/app", 1.0)
            seats.note_wait("reg/app", 1.0)
        assert seats.patience_seconds("reg/app") > 0
        for _ in range(round(PATIENCE_SECONDS) - 10):
            now[0] += 1.0
            seats.note_wait("reg/app", 1.0)
        assert seats.patience_seconds("reg/app") == 0
        assert seats.patience_seconds("reg/other") == PATIENCE_SECONDS
        now[0] += 61.0
        assert seats.patience_seconds("reg/app") > 0


async def test_who_sent_wrong_bytes_is_not_followed_again() -> None:
    lie = bytes([CONTENT[0] ^ 1]) + CONTENT[1:]
    answers: list[RelayAnswer] = [follow("liar"), Refused("left"), follow("n2"), Refused("done")]
    async with bed({"liar": Script(lie), "n2": Script(CONTENT)}, answers) as parts:
        with pytest.raises(CorruptContent):
            await parts.pull()
        await asyncio.sleep(0.01)
        assert await parts.pull() == CONTENT
    assert [ask.left for ask in parts.tracker.asked if ask.phase is Phase.ENTER] == [{}, {"liar": Left.FAILED}]


async def test_a_claim_that_another_host_has_now_is_not_kept() -> None:
    async with bed({}, [Fetch(7), Wait()]) as parts:
        parts.own.states = [Received(SIZE, 500, 1)]
        with pytest.raises(BlobUnknown):
            await parts.pull()
    assert not parts.seats.busy(D)


async def test_a_parent_that_only_waits_is_left_at_once_for_a_better_one_and_is_not_blamed() -> None:
    scripts = {"n1": Script(CONTENT, waits=1000), "n2": Script(CONTENT)}
    async with bed(scripts, [follow("n1"), follow("n2"), Refused("done")]) as parts:
        parts.tracker.again_after_seconds = 0.0
        assert await asyncio.wait_for(parts.pull(), 4) == CONTENT
    assert parts.tracker.asked[-1].left == {"n1": Left.IDLE}


async def test_a_grant_to_the_same_host_while_its_last_fetch_is_watched_is_kept_under_the_new_token() -> None:
    async with bed({}, [Fetch(8), Refused("done")]) as parts:
        parts.tracker.again_after_seconds = 0.0
        parts.own.states = [Received(SIZE, 500, 1), Received(SIZE, SIZE, 0)]
        parts.seats.fetch(D, SIZE, 0, 7)
        parts.seats.fetch(D, SIZE, 0, 8)
    assert [ask.token for ask in parts.tracker.asked] == [8, 8]


async def test_a_new_seat_is_not_asked_for_before_the_farewell_to_the_old_one_has_arrived() -> None:
    async with bed({"n1": Script(CONTENT)}, [Refused("left"), follow("n1"), Refused("done")]) as parts:
        parts.seats.tell(RelayAsk(D, Phase.LEAVE, SIZE, 0))
        assert await parts.pull() == CONTENT
    assert [phase for phase, _ in parts.told] == [Phase.LEAVE, Phase.ENTER, Phase.DONE]


async def test_what_is_waited_for_a_parent_without_bytes_is_counted() -> None:
    async with bed({"n1": Script(CONTENT, waits=1000)}, [follow("n1"), Refused("left")]) as parts:
        sources = TreeSources(parts.relay, parts.seats, D, OPEN, "reg/app")
        pieces = Transfer(parts.relay, D, SIZE, Span(0, SIZE, False), sources).pieces()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(anext(pieces), 0.3)
        await pieces.aclose()
        assert parts.seats.patience_seconds("reg/app") < PATIENCE_SECONDS - 0.2


async def test_a_node_that_is_too_busy_to_answer_once_costs_no_claim() -> None:
    async with bed({}, [Fetch(7), Fetch(7), Refused("done")]) as parts:
        parts.own.states = [Unavailable("own node", "busy"), Received(SIZE, 500, 1), Received(SIZE, SIZE, 0)]
        parts.tracker.again_after_seconds = 0.0
        with pytest.raises(BlobUnknown):
            await parts.pull()
    assert parts.told[-1] == (Phase.DONE, SIZE)


async def test_trackers_that_do_not_answer_three_questions_are_left_alone_for_a_moment() -> None:
    now = [100.0]
    async with asyncio.TaskGroup() as group:
        seats = Seats(FakeTracker(), FakeOwnHost(), group, GatewayMetrics(), lambda: now[0])
        resting = []
        for answered in (False, False, True, False, False, False):
            seats.note_answer(answered=answered)
            resting.append(seats.trackers_rest)
        now[0] += TREES_REST_SECONDS
        resting.append(seats.trackers_rest)
    assert resting == [False] * 5 + [True, False]
