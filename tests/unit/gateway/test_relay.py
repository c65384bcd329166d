"""A transfer goes on, whatever its holders do."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from stafett.common.cluster import Holder
from stafett.common.digest import Digest
from stafett.common.errors import BlobUnknown, CorruptContent, Draining, Overloaded, Unavailable
from stafett.common.topology import Topology
from stafett.gateway.byte_range import Span, resolve_range
from stafett.gateway.hedging import SAMPLES_MIN
from stafett.gateway.locator import Locator
from stafett.gateway.metrics import GatewayMetrics
from stafett.gateway.outcomes import Outcomes
from stafett.gateway.quarantine import Quarantine
from stafett.gateway.relay import Relay
from stafett.gateway.selection import Asking, nearest
from stafett.gateway.transfer import Transfer
from tests.unit.gateway.cluster import CHUNK, FakePeers, FakeTracker, Script, content_of, holder, node

CONTENT = content_of(10 * CHUNK + 77)
SIZE = len(CONTENT)
D = Digest.of(CONTENT)


@asynccontextmanager
async def relay(scripts: dict[str, Script], holders: tuple[Holder, ...] | None = None) -> AsyncIterator[Relay]:
    """A relay over scripted peers; the first named is the nearest."""
    if holders is None:
        holders = tuple(holder(name, SIZE, zone="ab"[min(1, rank)]) for rank, name in enumerate(scripts))
    async with asyncio.TaskGroup() as group:
        yield Relay(
            Locator(FakeTracker({D: holders}), group),
            FakePeers(scripts),
            nearest,
            Asking("me", Topology("eu", "a")),
            Quarantine(),
            0.2,
            GatewayMetrics(),
            Outcomes(FakeTracker()),
            random.Random(1),
        )


def counted(relay: Relay, name: str) -> float:
    """A counter without labels."""
    lines = relay.metrics.render().decode().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(f"{name} "))


def peers_of(relay: Relay) -> FakePeers:
    assert isinstance(relay.reader, FakePeers)
    return relay.reader


async def pulled(relay: Relay, span: Span | None = None) -> bytes:
    transfer = Transfer(relay, D, SIZE, span or Span(0, SIZE, False))
    return b"".join([bytes(piece) async for piece in transfer.pieces()])


async def had(content: bytes, error: Exception | None = None) -> AsyncGenerator[memoryview, None]:
    """What a client has of the blob already, as its node gives it."""
    yield memoryview(content)
    if error is not None:
        raise error


async def test_a_rest_is_checked_together_with_what_the_client_has_of_the_blob() -> None:
    rest = Span(3 * CHUNK, SIZE - 3 * CHUNK, True)
    async with relay({"n1": Script(CONTENT)}) as each:
        right = Transfer(each, D, SIZE, rest, prefix=had(CONTENT[: 3 * CHUNK]))
        assert b"".join([bytes(piece) async for piece in right.pieces()]) == CONTENT[3 * CHUNK :]
        unknown = Transfer(each, D, SIZE, rest, prefix=had(b"", Unavailable("own node", "gone")))
        assert b"".join([bytes(piece) async for piece in unknown.pieces()]) == CONTENT[3 * CHUNK :]
        wrong = Transfer(each, D, SIZE, rest, prefix=had(bytes(3 * CHUNK)))
        pieces = wrong.pieces()
        got = b"".join([bytes(await anext(pieces)) for _ in range(7)])
        with pytest.raises(CorruptContent):
            await anext(pieces)
        assert wrong.spoilt
        assert got == CONTENT[3 * CHUNK : 10 * CHUNK], "the last piece is held back"


@pytest.mark.parametrize("position", [0, 1, CHUNK - 1, CHUNK, 5 * CHUNK + 3, SIZE - 1])
async def test_a_stream_that_breaks_anywhere_goes_on_from_the_next_holder(position: int) -> None:
    async with relay({"n1": Script(CONTENT, breaks_at=position), "n2": Script(CONTENT)}) as broken:
        assert await pulled(broken) == CONTENT
        assert peers_of(broken).asked == [("n1", 0), ("n2", position)]
        assert peers_of(broken).open_now == 0
        assert broken.book.streams_open == 0


@pytest.mark.parametrize(
    "script",
    [
        Script(CONTENT, stalls_at=3 * CHUNK),
        Script(CONTENT, stalls_at=0),
        Script(CONTENT, ends_at=4 * CHUNK),
        Script(CONTENT, states_bytes=SIZE + 1),
        Script(CONTENT, breaks_at=0, error=lambda name: Overloaded("streams", 1)),
        Script(CONTENT, breaks_at=0, error=lambda name: BlobUnknown(D)),
    ],
    ids=["stalls", "stalls at once", "ends early", "states another size", "overloaded", "has lost it"],
)
async def test_a_holder_that_fails_in_any_way_is_left_for_the_next(script: Script) -> None:
    async with relay({"n1": script, "n2": Script(CONTENT)}) as failing:
        assert await pulled(failing) == CONTENT
        assert len(peers_of(failing).asked) == 2


async def test_a_peer_that_waits_is_not_taken_for_a_stalled_one() -> None:
    async with relay({"n1": Script(CONTENT, waits=20)}) as waiting:
        assert await pulled(waiting) == CONTENT
        assert [name for name, _ in peers_of(waiting).asked] == ["n1"]


async def test_a_late_first_byte_is_hedged_once_and_never_at_the_same_holder() -> None:
    scripts = {name: Script(CONTENT, stalls_at=0) for name in ("n1", "n2", "n3")}
    async with relay({**scripts, "n4": Script(CONTENT)}) as late:
        assert await pulled(late) == CONTENT
        names = [name for name, _ in peers_of(late).asked]
        assert len(set(names)) == len(names)
        assert late.book.streams_open == 0
        assert peers_of(late).open_now == 0


async def test_without_budget_there_is_no_hedge() -> None:
    async with relay({"n1": Script(CONTENT, waits=15), "n2": Script(CONTENT)}) as spent:
        while spent.hedging.budget.take():
            pass
        assert await pulled(spent) == CONTENT
        assert [name for name, _ in peers_of(spent).asked] == ["n1"]


async def test_where_first_bytes_are_always_late_asking_others_stays_within_a_budget() -> None:
    late = {name: Script(CONTENT, first_byte_seconds=0.6) for name in ("n1", "n2", "n3", "n4")}
    async with relay(late) as slow:
        slow.stall_timeout_seconds = 30.0
        for _ in range(SAMPLES_MIN):
            slow.hedging.observe(0.6)
        requests = 100
        for pulling in asyncio.as_completed([pulled(slow) for _ in range(requests)]):
            assert await pulling == CONTENT
        more = len(peers_of(slow).asked) - requests
        assert 0 < more < requests / 2


async def test_whatever_hedges_have_cost_an_overdue_first_byte_is_asked_of_one_more_after_the_other() -> None:
    scripts = {name: Script(CONTENT, stalls_at=0) for name in ("n1", "n2", "n4")}
    async with relay({**scripts, "n3": Script(CONTENT)}) as overdue:
        overdue.stall_timeout_seconds = 30.0
        while overdue.hedging.budget.take():
            pass
        for _ in range(SAMPLES_MIN):
            overdue.hedging.observe(5.0)  # hedges are late, too
        overdue.book.of(holder("n3", SIZE).node).stream_failed(overdue.book.clock())
        transfer = Transfer(overdue, D, SIZE, Span(0, SIZE, False))
        pieces = transfer.pieces()
        assert await transfer.first_piece(pieces) is not None
        assert transfer.served_by is not None
        assert transfer.served_by.node.id == "n3"
        await pieces.aclose()
        assert peers_of(overdue).open_now == 0


async def test_a_holder_that_crawls_is_left_while_another_has_room_and_asked_again_when_nobody_is_left() -> None:
    crawling = Script(CONTENT, pause_seconds=0.45)
    async with relay({"n1": crawling, "n2": Script(CONTENT, breaks_at=8 * CHUNK)}) as slow:
        slow.stall_timeout_seconds = 2.0
        while slow.hedging.budget.take():
            pass
        assert await pulled(slow) == CONTENT
        asked = peers_of(slow).asked
        assert [name for name, _ in asked] == ["n1", "n2", "n1"]
        assert slow.outcomes._tallies["n1"].succeeded == 1, "only where it was the last one left"
        assert 0 < asked[1][1] < 8 * CHUNK == asked[2][1], "each goes on where the last one stopped"


async def test_a_client_that_takes_its_time_makes_no_holder_slow() -> None:
    async with relay({"n1": Script(CONTENT), "n2": Script(CONTENT)}) as quick:
        async for _ in Transfer(quick, D, SIZE, Span(0, SIZE, False)).pieces():
            await asyncio.sleep(0.3)
        assert [name for name, _ in peers_of(quick).asked] == ["n1"]


async def test_a_full_holder_is_asked_again_when_it_is_the_only_one() -> None:
    full = Script(CONTENT, breaks_at=0, error=lambda name: Overloaded("streams", 1), fails_times=2)
    async with relay({"n1": full}) as busy:
        assert await pulled(busy) == CONTENT
        assert [name for name, _ in peers_of(busy).asked] == ["n1", "n1", "n1"]
        assert not busy.book.view(holder("n1", SIZE).node).failing, "a full peer is nobody's fault"


async def test_a_holder_that_failed_is_the_last_resort_of_the_next_pull() -> None:
    async with relay({"n1": Script(CONTENT, breaks_at=CHUNK, fails_times=1), "n2": Script(CONTENT)}) as shared:
        assert await pulled(shared) == CONTENT
        assert await pulled(shared) == CONTENT
        assert [name for name, _ in peers_of(shared).asked] == ["n1", "n2", "n2"]
        shared.locator.forget(D, "n2")
        assert await pulled(shared) == CONTENT, "better one that failed than a miss"


async def test_bytes_beyond_the_end_are_never_passed_on() -> None:
    async with relay({"n1": Script(CONTENT, extra=b"more")}) as generous:
        assert await pulled(generous) == CONTENT


async def test_a_suffix_range_survives_a_failure_in_the_middle() -> None:
    span = resolve_range("bytes=-5000", SIZE)
    async with relay({"n1": Script(CONTENT, breaks_at=SIZE - 2000), "n2": Script(CONTENT)}) as broken:
        assert await pulled(broken, span) == CONTENT[-5000:]


async def test_nobody_is_asked_twice_when_all_fail_at_the_same_byte() -> None:
    scripts = {f"n{number}": Script(CONTENT, breaks_at=CHUNK) for number in range(5)}
    async with relay(scripts) as broken:
        with pytest.raises(BlobUnknown):
            await pulled(broken)
        assert sorted(name for name, _ in peers_of(broken).asked) == sorted(scripts)


async def test_a_holder_that_becomes_known_late_is_still_offered() -> None:
    scripts = {"n1": Script(CONTENT, breaks_at=2 * CHUNK), "late": Script(CONTENT)}
    async with relay(scripts, (holder("n1", SIZE),)) as known:
        transfer = Transfer(known, D, SIZE, Span(0, SIZE, False))
        pieces = transfer.pieces()
        received = bytes(await anext(pieces))
        tracker = FakeTracker({D: (holder("n1", SIZE), holder("late", SIZE))})
        known.locator._tracker = tracker  # the cluster learns of another holder meanwhile
        received += b"".join([bytes(piece) async for piece in pieces])
        assert received == CONTENT
        assert [name for name, _ in peers_of(known).asked] == ["n1", "late"]


@pytest.mark.parametrize("wrong_at", [0, SIZE // 2, SIZE - 1])
async def test_wrong_bytes_never_make_a_whole_blob_and_the_next_attempt_goes_elsewhere(wrong_at: int) -> None:
    lie = CONTENT[:wrong_at] + bytes([CONTENT[wrong_at] ^ 1]) + CONTENT[wrong_at + 1 :]
    async with relay({"liar": Script(lie), "honest": Script(CONTENT)}) as lied:
        received = bytearray()

        async def receive() -> None:
            async for piece in Transfer(lied, D, SIZE, Span(0, SIZE, False)).pieces():
                received.extend(piece)

        with pytest.raises(CorruptContent):
            await receive()
        assert 0 < len(received) < SIZE
        assert await pulled(lied) == CONTENT
        assert [name for name, _ in peers_of(lied).asked] == ["liar", "honest"]


def lie_at(position: int) -> bytes:
    return CONTENT[:position] + bytes([CONTENT[position] ^ 1]) + CONTENT[position + 1 :]


@pytest.mark.parametrize("liar_first", [True, False])
async def test_of_those_who_had_a_part_in_wrong_bytes_the_honest_serve_the_next_attempt(liar_first: bool) -> None:
    first, second = (lie_at(10), CONTENT) if liar_first else (CONTENT, lie_at(SIZE - 10))
    async with relay({"n1": Script(first, breaks_at=5 * CHUNK, fails_times=1), "n2": Script(second)}) as mixed:
        with pytest.raises(CorruptContent):
            await pulled(mixed)
        assert await pulled(mixed) == CONTENT
        assert counted(mixed, "stafett_gateway_quarantined_total") == 1
        assert [name for name, _ in peers_of(mixed).asked] == ["n1", "n2", "n1" if not liar_first else "n2"]


async def test_a_suspect_that_could_not_be_heard_is_heard_when_nobody_else_is_left() -> None:
    answers: list[bool | None] = [None, None, True]

    def busy() -> bool:
        if (answer := answers.pop(0)) is None:
            raise Unavailable("honest", "busy")
        return answer

    scripts = {"liar": Script(lie_at(10), breaks_at=5 * CHUNK), "honest": Script(CONTENT, verifies=busy)}
    async with relay(scripts) as mixed:
        with pytest.raises(CorruptContent):
            await pulled(mixed)
        with pytest.raises(BlobUnknown):
            await pulled(mixed)
        assert await pulled(mixed) == CONTENT


async def test_who_lies_again_after_its_node_found_nothing_is_believed_no_more() -> None:
    stubborn = Script(lie_at(10), verifies=lambda: True, breaks_at=5 * CHUNK, error=lambda name: Draining())
    async with relay({"liar": stubborn, "honest": Script(CONTENT)}) as mixed:
        for _ in range(2):
            with pytest.raises(CorruptContent):
                await pulled(mixed)
        asked = len(peers_of(mixed).asked)
        for _ in range(3):
            with pytest.raises(BlobUnknown):
                await pulled(mixed)
        assert len(peers_of(mixed).asked) == asked, "a hot loop between the two is impossible"


async def test_a_client_that_leaves_closes_the_stream_at_the_peer() -> None:
    async with relay({"n1": Script(CONTENT)}) as left:
        pieces = Transfer(left, D, SIZE, Span(0, SIZE, False)).pieces()
        await anext(pieces)
        assert peers_of(left).open_now == 1
        assert left.book.streams_open == 1
        await pieces.aclose()
        assert peers_of(left).open_now == 0
        assert left.book.streams_open == 0


async def test_with_nobody_left_the_first_piece_is_a_clear_no() -> None:
    async with relay({"n1": Script(CONTENT, breaks_at=0, error=lambda name: Unavailable(name, "refused"))}) as alone:
        transfer = Transfer(alone, D, SIZE, Span(0, SIZE, False))
        pieces = transfer.pieces()
        with pytest.raises(BlobUnknown):
            await transfer.first_piece(pieces)


async def test_failures_are_told_to_the_trackers_in_one_batch_and_lies_with_their_digest() -> None:
    lie = bytes([CONTENT[0] ^ 1]) + CONTENT[1:]
    full = Script(CONTENT, breaks_at=0, error=lambda name: Overloaded("streams", 1))
    scripts = {"broken": Script(CONTENT, breaks_at=0), "busy": full, "liar": Script(lie)}
    near_to_far = (("broken", "eu", "a"), ("busy", "eu", "b"), ("liar", "us", "c"))
    holders = tuple(
        Holder(replace(node(name), topology=Topology(region, zone)), SIZE) for name, region, zone in near_to_far
    )
    tracker = FakeTracker()
    async with relay(scripts, holders) as shared:
        shared.outcomes = Outcomes(tracker)
        with pytest.raises(CorruptContent):
            await pulled(shared)
        telling = asyncio.create_task(shared.outcomes.run())
        async with asyncio.timeout(10):
            while not tracker.reports:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        telling.cancel()
    (told,) = tracker.reports
    assert told["broken"].refused == 1
    assert told["liar"].corrupt == {D}
    assert (told["busy"].refused, told["busy"].stalled, told["busy"].overloaded) == (0, 0, 1), "it is nobody's fault"
