"""The node's session, against trackers that do what they are told and against the real one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager

from stafett.cli.local_cluster.processes import free_port
from stafett.common import wire
from stafett.common.cluster import Address, HealthSample, HeldImage, NodeState, Registration
from stafett.common.digest import Digest
from stafett.common.inventory import Inventory
from stafett.common.topology import Topology
from stafett.node.session import Session, SessionThread
from tests.integration.node.hosts import becomes
from tests.integration.node.scripted_tracker import ScriptedTracker, scripted
from tests.integration.tracker.cluster import eventually, tracker
from tests.integration.valkey import ValkeyServer

A, B, C = (Digest.of(name) for name in (b"a", b"b", b"c"))
NAME = "registry.test/lib/app:1"
IDENTITY = Registration("n1", 77, Address("127.0.0.1", 7461), Topology("eu", "z1", "r1"), {"disk": "ssd"}, "0.1.0")


def sized(*digests: Digest) -> dict[Digest, int]:
    return dict.fromkeys(digests, 10)


def named(*names: str) -> dict[str, HeldImage]:
    return {name: HeldImage(name, A, "application/json", 10, 10, True, 1) for name in names}


def texts(digests: Iterable[Digest]) -> set[str]:
    return {str(digest) for digest in digests}


def sample() -> HealthSample:
    return HealthSample(active_streams=2, stream_limit=9)


@asynccontextmanager
async def session_with(*ports: int) -> AsyncIterator[Session]:
    target = "ipv4:" + ",".join(f"127.0.0.1:{port}" for port in ports)
    session = Session(target, None, IDENTITY, sample)
    running = asyncio.create_task(session.run())
    try:
        yield session
    finally:
        session.stop()
        await running


async def heartbeats(heard: ScriptedTracker, count: int) -> None:
    """Wait for so many more heartbeats in the newest session."""
    wanted = len(heard.last.heartbeats) + count
    await becomes(lambda: len(heard.last.heartbeats) >= wanted)


async def test_a_node_registers_as_what_it_is_and_beats() -> None:
    async with scripted() as heard, session_with(heard.port):
        await becomes(lambda: bool(heard.sessions))
        register = heard.last.register
        assert (register.node_id, register.incarnation, register.version) == ("n1", 77, "0.1.0")
        assert wire.address_from_wire(register.address) == IDENTITY.address
        assert wire.topology_from_wire(register.topology) == IDENTITY.topology
        assert dict(register.labels) == {"disk": "ssd"}
        await heartbeats(heard, 3)
        assert [beat.sequence for beat in heard.last.heartbeats[:3]] == [1, 2, 3]
        assert wire.health_from_wire(heard.last.heartbeats[0].health) == sample()
        assert len(heard.sessions) == 1


async def test_only_what_has_changed_is_announced() -> None:
    async with scripted() as heard, session_with(heard.port) as session:
        session.publish(sized(A, B), named(NAME))
        await becomes(lambda: heard.blobs == texts([A, B]) and heard.images == {NAME})
        session.publish(sized(B, C), {})
        await becomes(lambda: heard.blobs == texts([B, C]) and not heard.images)
        last = heard.last.announcements[-1]
        assert not last.reset
        assert {blob.digest for blob in last.holds} == {str(C)}
        assert list(last.withdraws) == [str(A)]
        said = len(heard.last.announcements)
        session.publish(sized(B, C), {})
        await heartbeats(heard, 3)
        assert len(heard.last.announcements) == said


async def test_heartbeats_tell_the_inventory_once_all_is_said() -> None:
    async with scripted() as heard, session_with(heard.port) as session:
        session.publish(sized(A, B), {})
        expected = wire.inventory_to_wire(Inventory.of([A, B]))
        await becomes(lambda: bool(heard.sessions) and any(b.inventory == expected for b in heard.last.heartbeats))
        heard.acknowledges_news = False
        session.publish(sized(A), {})
        await becomes(lambda: bool(heard.last.announcements) and bool(heard.last.announcements[-1].withdraws))
        await heartbeats(heard, 3)
        assert not heard.last.heartbeats[-1].HasField("inventory")


async def test_an_error_of_our_own_ends_a_session_and_not_the_sessions() -> None:
    samples: Iterator[HealthSample | Exception] = iter([sample(), ZeroDivisionError("not foreseen")])

    def failing() -> HealthSample:
        found = next(samples, sample())
        if isinstance(found, Exception):
            raise found
        return found

    async with scripted() as heard:
        thread = SessionThread(Session(f"ipv4:127.0.0.1:{heard.port}", None, IDENTITY, failing))
        thread.start()
        await becomes(lambda: len(heard.sessions) == 2)
        await heartbeats(heard, 2)
        await asyncio.to_thread(thread.stop)


async def test_a_tracker_that_asks_for_everything_gets_everything() -> None:
    async with scripted() as heard, session_with(heard.port) as session:
        session.publish(sized(A, B), named(NAME))
        await becomes(lambda: heard.blobs == texts([A, B]))
        heard.blobs, heard.images = {"stale"}, {"stale"}
        await heard.last.order_everything()
        await becomes(lambda: heard.blobs == texts([A, B]) and heard.images == {NAME})
        assert heard.last.announcements[-1].reset


async def test_a_tracker_that_knows_nothing_is_told_everything_at_registration() -> None:
    async with scripted() as heard:
        heard.announce_all = True
        heard.blobs = {"stale"}
        async with session_with(heard.port) as session:
            session.publish(sized(A), {})
            await becomes(lambda: heard.blobs == texts([A]))
            assert heard.last.announcements[0].reset
            assert not any(said.reset for said in heard.last.announcements[1:])


async def test_at_most_one_announcement_is_unacknowledged_even_when_ordered_to_start_over() -> None:
    async with scripted() as heard, session_with(heard.port) as session:
        heard.acknowledges_news = False
        session.publish(sized(A), {})
        await becomes(lambda: heard.blobs == texts([A]))
        session.publish(sized(A, B), {})
        await heard.last.order_everything()
        await heartbeats(heard, 3)
        assert len(heard.last.announcements) == 1
        await heard.last.acknowledge()
        await becomes(lambda: len(heard.last.announcements) == 2)
        assert heard.last.announcements[-1].reset
        assert heard.blobs == texts([A, B])


async def test_after_an_abort_the_node_registers_again_with_what_it_has_told() -> None:
    async with scripted() as heard, session_with(heard.port) as session:
        session.publish(sized(A, B), {})
        await becomes(lambda: heard.blobs == texts([A, B]))
        await heartbeats(heard, 2)
        heard.last.abort = True
        await becomes(lambda: len(heard.sessions) == 2)
        assert wire.inventory_from_wire(heard.last.register.inventory) == Inventory.of([A, B])
        assert heard.last.register.incarnation == IDENTITY.incarnation
        session.publish(sized(A, B, C), {})
        await becomes(lambda: heard.blobs == texts([A, B, C]))
        assert {blob.digest for blob in heard.last.announcements[0].holds} == {str(C)}


async def test_a_broken_session_leaves_no_task_counted_as_cancelled() -> None:
    """What Python 3.11.2 does not forgive (no timeout works in such a task), counted so that every Python shows it."""
    async with scripted() as heard, session_with(heard.port):
        await becomes(lambda: bool(heard.sessions))
        await heartbeats(heard, 1)
        heard.last.abort = True
        await becomes(lambda: len(heard.sessions) == 2)
        await becomes(lambda: not any(task.cancelling() for task in asyncio.all_tasks()))


async def test_news_that_a_broken_session_left_unconfirmed_is_said_again() -> None:
    async with scripted() as heard, session_with(heard.port) as session:
        heard.acknowledges_news = False
        session.publish(sized(A), named(NAME))
        await becomes(lambda: heard.images == {NAME})
        heard.last.abort = True
        session.publish(sized(A), {})
        heard.acknowledges_news = True
        await becomes(lambda: len(heard.sessions) == 2 and bool(heard.last.announcements))
        await becomes(lambda: heard.blobs == texts([A]) and not heard.images)


async def test_a_tracker_that_does_not_acknowledge_is_left_for_another() -> None:
    async with scripted() as one, scripted() as two, session_with(one.port, two.port) as session:
        await becomes(lambda: bool(one.sessions or two.sessions))
        silent, other = (one, two) if one.sessions else (two, one)
        silent.acknowledges_beats = False
        await becomes(lambda: bool(other.sessions))
        session.publish(sized(A), {})
        await becomes(lambda: other.blobs == texts([A]))


async def test_a_tracker_that_is_gone_is_left_for_another() -> None:
    async with AsyncExitStack() as stack:
        running = [await stack.enter_async_context(scripted()) for _ in range(2)]
        session = await stack.enter_async_context(session_with(*(heard.port for heard in running)))
        session.publish(sized(A), {})
        await becomes(lambda: any(heard.blobs for heard in running))
        first, other = running if running[0].sessions else reversed(running)
        await first.stop()
        await becomes(lambda: bool(other.sessions))
        session.publish(sized(A, B), {})
        await becomes(lambda: str(B) in other.blobs)


async def test_draining_is_told_and_told_again_to_the_next_session() -> None:
    async with scripted() as heard, session_with(heard.port) as session:
        await becomes(lambda: bool(heard.sessions))
        session.drain()
        await becomes(lambda: heard.last.drains == [True])
        heard.last.abort = True
        await becomes(lambda: len(heard.sessions) == 2 and heard.last.drains == [True])
        first = heard.last
        session.stop()
        await becomes(lambda: first.ended_by_node)


async def test_nothing_is_lost_while_no_tracker_is_there() -> None:
    port = free_port()
    async with session_with(port) as session:
        session.publish(sized(A), {})
        session.publish(sized(A, B), named(NAME))
        async with scripted(port) as first:
            await becomes(lambda: first.blobs == texts([A, B]) and first.images == {NAME})
        session.publish(sized(B, C), {})
        async with scripted(port) as second:
            second.announce_all = True
            await becomes(lambda: second.blobs == texts([B, C]))
            assert not second.images


async def test_a_session_thread_keeps_a_node_located_in_a_real_cluster(valkey: ValkeyServer) -> None:
    async with tracker(valkey.url, lease_ttl_seconds=60.0) as running:
        await running.ready()
        thread = SessionThread(Session(f"ipv4:127.0.0.1:{running.port}", None, IDENTITY, sample))
        thread.start()
        thread.publish(sized(A, B), named(NAME))

        async def located() -> bool:
            return await running.holder_ids(A) == ["n1"] == await running.holder_ids(B)

        await eventually(located)
        await valkey.flush()
        await eventually(located)
        thread.drain()

        async def draining() -> bool:
            return await running.state("n1") is NodeState.DRAINING

        await eventually(draining)
        await asyncio.to_thread(thread.stop)

        async def left() -> bool:
            return await running.state("n1") in (NodeState.DOWN, None)

        await eventually(left)
