"""Locate, tags and lists, over real gRPC and a real Valkey."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator

import grpc
import pytest

from stafett.api.v1 import tracker_pb2, types_pb2
from stafett.common.cluster import Address, Announcement, HeldBlob, HeldImage, NodeState, Registration
from stafett.common.digest import Digest
from stafett.common.topology import Topology
from stafett.tracker.holdings_store import HoldingsStore, Owner
from stafett.tracker.membership_store import MembershipStore
from stafett.tracker.redis_link import RedisLink, RedisPlace
from tests.integration.tracker.cluster import RunningTracker, Session, SessionEnded, eventually, tracker
from tests.integration.valkey import ValkeyServer

A, B, C = (Digest.of(name) for name in (b"a", b"b", b"c"))
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
HERE = Topology("eu", "eu-1", "r1")


@pytest.fixture
async def one(valkey: ValkeyServer) -> AsyncIterator[RunningTracker]:
    async with tracker(valkey.url) as running:
        await running.ready()
        yield running


def image(name: str, target: Digest, updated_at_unix_ms: int, *, complete: bool = True) -> HeldImage:
    return HeldImage(name, target, MANIFEST, 500, 1000, complete, updated_at_unix_ms)


async def holder(at: RunningTracker, node_id: str, place: Topology, *digests: Digest) -> Session:
    session = Session(at, node_id, place=place)
    await session.register()
    await session.announce(*digests, reset=True)
    return session


async def test_holders_come_nearest_first_and_never_include_the_asker(one: RunningTracker) -> None:
    places = {
        "world": Topology("us", "us-1", "r1"),
        "region": Topology("eu", "eu-2", "r1"),
        "zone": Topology("eu", "eu-1", "r2"),
        "rack": HERE,
        "asker": HERE,
    }
    sessions = [await holder(one, node_id, place, A) for node_id, place in places.items()]

    async def all_known() -> bool:
        return len(await one.holder_ids(A, HERE)) == len(places)

    await eventually(all_known)
    holders, stale = await one.locate(A, HERE, node_id="asker")
    assert [found.node.id for found in holders] == ["rack", "zone", "region", "world"]
    assert [found.size_bytes for found in holders] == [10] * 4
    assert not stale
    assert await one.holder_ids(B, HERE) == []
    for session in sessions:
        session.cut()


async def test_a_few_farther_holders_are_named_beside_a_full_rack(one: RunningTracker) -> None:
    far = Topology("eu", "eu-2", "r9")
    places = {**{f"near{i}": HERE for i in range(8)}, **{f"far{i}": far for i in range(4)}}
    sessions = [await holder(one, node_id, place, A) for node_id, place in places.items()]

    async def all_known() -> bool:
        return len(await one.holder_ids(A, HERE)) == len(places)

    await eventually(all_known)
    holders, _ = await one.locate(A, HERE, most=4)
    assert [found.node.topology for found in holders] == [HERE, HERE, HERE, far]
    for session in sessions:
        session.cut()


async def test_among_2000_holders_the_one_in_the_rack_comes_first(valkey: ValkeyServer) -> None:
    rng = random.Random(1)
    link = RedisLink(RedisPlace.parse(valkey.url))
    nodes, holdings = MembershipStore(link, 60, 1), HoldingsStore(link, rng)
    for number in range(2000):
        place = HERE if number == 777 else Topology("eu", f"eu-{rng.randrange(4)}", f"rack{rng.randrange(50)}")
        said = Registration(f"n{number}", 1, Address("127.0.0.1", 7000), place, {}, "0.1.0")
        owner = Owner(said.node_id, await nodes.grant(said), 1, place)
        await holdings.open(owner)
        await holdings.announce(owner, Announcement(holds=(HeldBlob(A, 10),)))
    await link.close()
    async with tracker(valkey.url, lease_ttl_seconds=60) as running:
        await running.ready()
        holders, _ = await running.locate(A, HERE)
        assert len(holders) == 16
        assert holders[0].node.id == "n777"
        assert len({found.node.id for found in holders}) == 16


async def test_live_holders_are_found_behind_many_dead_ones(valkey: ValkeyServer) -> None:
    link = RedisLink(RedisPlace.parse(valkey.url))
    nodes, holdings = MembershipStore(link, 0.001, 0.0001), HoldingsStore(link, random.Random(1))
    for number in range(200):
        said = Registration(f"dead{number}", 1, Address("127.0.0.1", 7000), HERE, {}, "0.1.0")
        owner = Owner(said.node_id, await nodes.grant(said), 1, HERE)
        await holdings.open(owner)
        await holdings.announce(owner, Announcement(holds=(HeldBlob(A, 10),)))
    for due in (await nodes.scan()).due:
        await nodes.apply(due)
    await link.close()
    async with tracker(valkey.url) as running:
        await running.ready()
        session = await holder(running, "live", HERE, A)

        async def found() -> bool:
            return await running.holder_ids(A, HERE) == ["live"]

        await eventually(found)
        session.cut()


async def test_holdings_of_an_earlier_process_are_not_served(one: RunningTracker) -> None:
    first = await holder(one, "n1", HERE, A, B)
    second = Session(one, "n1", incarnation=2, place=Topology("eu", "eu-2", "r1"))
    assert await second.register()
    assert await one.holder_ids(A) == []
    await second.announce(B, reset=True)

    async def holds() -> bool:
        return await one.holder_ids(B) == ["n1"]

    await eventually(holds)
    assert await one.holder_ids(A) == []
    first.cut()
    second.cut()


async def test_a_tag_means_what_the_node_that_updated_it_last_says(one: RunningTracker) -> None:
    name = "registry.example.com/team/app:v1"
    old = await holder(one, "old", HERE, A)
    await old.announce(images=[image(name, A, 1000)])
    new = await holder(one, "new", HERE, B)
    await new.announce(images=[image(name, B, 2000)])
    request = tracker_pb2.ResolveTagRequest(name=name)

    async def newest() -> bool:
        return (await one.stub.ResolveTag(request, timeout=5)).target_digest == str(B)

    await eventually(newest)
    answer = await one.stub.ResolveTag(request, timeout=5)
    assert (answer.target_media_type, answer.target_size_bytes, answer.stale) == (MANIFEST, 500, False)
    [summary] = (await one.stub.ListImages(tracker_pb2.ListImagesRequest(), timeout=5)).images
    assert summary.name == name
    assert summary.complete_node_ids == ["new"]
    assert summary.other_node_ids == ["old"]
    assert summary.content_bytes == 1000
    await new.send(announce=tracker_pb2.Announce(withdrawn_images=[name]))
    await new.receive()
    assert (await one.stub.ResolveTag(request, timeout=5)).target_digest == str(A)
    await old.announce(reset=True)
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await one.stub.ResolveTag(request, timeout=5)
    assert error.value.code() is grpc.StatusCode.NOT_FOUND
    assert not (await one.stub.ListImages(tracker_pb2.ListImagesRequest(), timeout=5)).images
    old.cut()
    new.cut()


async def test_a_watcher_without_news_gets_a_sign_of_life(valkey: ValkeyServer) -> None:
    async with tracker(valkey.url) as at:
        await at.ready()
        watch = at.stub.Watch(tracker_pb2.WatchRequest(), timeout=60)
        steps = aiter(watch)
        first, second = await anext(steps), await anext(steps)
        assert first.HasField("snapshot")
        assert second.WhichOneof("message") is None
        watch.cancel()


async def test_two_replicas_agree_and_a_change_reaches_the_watchers_of_both(valkey: ValkeyServer) -> None:
    async with tracker(valkey.url) as first, tracker(valkey.url) as second:
        await first.ready()
        await second.ready()
        watch = second.stub.Watch(tracker_pb2.WatchRequest(), timeout=60)
        snapshot = await anext(aiter(watch))
        assert snapshot.HasField("snapshot")
        session = await holder(first, "n1", HERE, A)
        states: list[tuple[int, int]] = []
        session.cut()
        async for step in watch:
            if not step.HasField("changed"):
                continue
            states.append((step.revision, step.changed.state))
            if step.changed.state == types_pb2.NODE_STATE_DOWN:
                break
        assert [state for _, state in states] == [
            types_pb2.NODE_STATE_READY,
            types_pb2.NODE_STATE_SUSPECT,
            types_pb2.NODE_STATE_DOWN,
        ]
        revisions = [revision for revision, _ in states]
        assert revisions == list(range(revisions[0], revisions[0] + 3)), "each change is made and published once"
        watch.cancel()

        async def down() -> bool:
            return await first.state("n1") is NodeState.DOWN

        await eventually(down)
        assert (await first.nodes())["n1"] == (await second.nodes())["n1"]


REGISTER = tracker_pb2.Register(node_id="n", address=types_pb2.Address(host="127.0.0.1", port=1))
BAD_FIRST = {
    "message": tracker_pb2.SessionRequest(heartbeat=tracker_pb2.Heartbeat()),
    "node_id": tracker_pb2.SessionRequest(register=tracker_pb2.Register(node_id="a{b}", address=REGISTER.address)),
    "address": tracker_pb2.SessionRequest(register=tracker_pb2.Register(node_id="n")),
    "address.host": tracker_pb2.SessionRequest(
        register=tracker_pb2.Register(node_id="n", address=types_pb2.Address(host="a b", port=1))
    ),
    "topology.zone": tracker_pb2.SessionRequest(
        register=tracker_pb2.Register(
            node_id="n", address=REGISTER.address, topology=types_pb2.Topology(zone="z" * 300)
        )
    ),
}


@pytest.mark.parametrize("field", BAD_FIRST)
async def test_a_malformed_registration_is_refused_naming_the_field(one: RunningTracker, field: str) -> None:
    session = Session(one, "n")
    await session.call.write(BAD_FIRST[field])
    with pytest.raises(SessionEnded) as ended:
        await session.receive()
    assert ended.value.code is grpc.StatusCode.INVALID_ARGUMENT
    assert ended.value.details.startswith(f"{field}:")


BLOB = tracker_pb2.HeldBlob(digest=str(A))
BAD_ANNOUNCE = {
    "holds[1]": tracker_pb2.Announce(holds=[BLOB, tracker_pb2.HeldBlob(digest="sha256:XYZ")]),
    "holds": tracker_pb2.Announce(holds=[BLOB] * 1001),
    "withdraws[0]": tracker_pb2.Announce(withdraws=["md5:00"]),
    "images[0]": tracker_pb2.Announce(images=[tracker_pb2.HeldImage(name="app", target_digest=str(A))]),
    "images": tracker_pb2.Announce(
        images=[tracker_pb2.HeldImage(name="r.io/a:b", target_digest=str(A), target_media_type=MANIFEST)] * 201
    ),
    "withdrawn_images[0]": tracker_pb2.Announce(withdrawn_images=["../../etc:x"]),
}


@pytest.mark.parametrize("field", BAD_ANNOUNCE)
async def test_a_malformed_announcement_is_refused_naming_the_field(one: RunningTracker, field: str) -> None:
    session = Session(one, "n")
    await session.register()
    await session.send(announce=BAD_ANNOUNCE[field])
    with pytest.raises(SessionEnded) as ended:
        await session.receive()
    assert ended.value.code is grpc.StatusCode.INVALID_ARGUMENT
    assert ended.value.details.startswith(f"{field}:")
    assert await one.holder_ids(A) == []


@pytest.mark.parametrize(
    ("field", "request_"),
    [
        ("digests", tracker_pb2.LocateRequest()),
        ("digests[0]", tracker_pb2.LocateRequest(digests=["sha512:" + "0" * 128])),
        ("digests", tracker_pb2.LocateRequest(digests=[str(A)] * 1001)),
        ("max_holders", tracker_pb2.LocateRequest(digests=[str(A)], max_holders=65)),
        ("node_id", tracker_pb2.LocateRequest(digests=[str(A)], node_id="a b")),
    ],
)
async def test_a_malformed_locate_is_refused_naming_the_field(
    one: RunningTracker, field: str, request_: tracker_pb2.LocateRequest
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await one.stub.Locate(request_, timeout=5)
    assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert (error.value.details() or "").startswith(f"{field}:")
