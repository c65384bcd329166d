"""A replica that is paused in the middle of an announcement wakes up when the node's next session is long at work."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest

from stafett.common.cluster import Announcement, HeldBlob, HeldImage
from stafett.common.digest import Digest
from stafett.common.errors import SessionLost
from stafett.common.inventory import Inventory
from stafett.common.topology import Topology
from stafett.tracker.holdings_store import HoldingsStore, Owner
from stafett.tracker.redis_link import CALL_SECONDS, RedisLink, RedisPlace, Reply
from tests.integration.valkey import ValkeyServer

A, B, C = (Digest.of(name) for name in (b"a", b"b", b"c"))
PLACE = Topology("eu", "eu-1", "r1")
NAME = "reg.test/app:1"
OLD, NEW = Owner("n1", 100, 7, PLACE), Owner("n1", 200, 7, PLACE)
RESTARTED = Owner("n1", 200, 8, PLACE)


class PausedLink(RedisLink):
    """Stops before the first writes outside the node's own slot, until told to go on."""

    def __init__(self, url: str) -> None:
        super().__init__(RedisPlace.parse(url))
        self.stopped, self.go_on = asyncio.Event(), asyncio.Event()

    async def run_all(
        self,
        calls: Sequence[tuple[str, Sequence[str], Sequence[str | int]]],
        timeout_seconds: float = CALL_SECONDS,
    ) -> list[Reply]:
        if calls:
            self.stopped.set()
            await self.go_on.wait()
        return await super().run_all(calls, timeout_seconds)


@dataclass
class Replicas:
    """Two trackers' ways to the index; the first one can be paused."""

    first: HoldingsStore
    second: HoldingsStore
    link: PausedLink

    @asynccontextmanager
    async def paused(self, owner: Owner, news: Announcement) -> AsyncIterator[asyncio.Task[None]]:
        """Have the first replica paused in the middle of an announcement; at the end it has gone on and ended."""
        self.link.go_on.clear()
        self.link.stopped.clear()
        announcing = asyncio.create_task(self.first.announce(owner, news))
        await self.link.stopped.wait()
        yield announcing
        self.link.go_on.set()
        await asyncio.wait([announcing])

    async def holders(self, digest: Digest) -> list[tuple[int, int]]:
        """Epochs and incarnations of the entries of a digest."""
        [(entries, _)] = await self.second.locate([digest], PLACE, 16)
        return [(entry.epoch, entry.incarnation) for entry in entries]


@pytest.fixture
async def replicas(valkey: ValkeyServer) -> AsyncIterator[Replicas]:
    paused, other = PausedLink(valkey.url), RedisLink(RedisPlace.parse(valkey.url))
    paused.go_on.set()
    made = Replicas(HoldingsStore(paused, random.Random(1)), HoldingsStore(other, random.Random(2)), paused)
    await made.first.open(OLD)
    await made.first.announce(OLD, Announcement(reset=True, holds=held(A, B)))
    yield made
    await paused.close()
    await other.close()


def held(*digests: Digest) -> tuple[HeldBlob, ...]:
    return tuple(HeldBlob(digest, 10) for digest in digests)


IMAGE = HeldImage(NAME, A, "application/vnd.oci.image.index.v1+json", 10, 20, True, 1)


async def test_a_blob_that_is_gone_meanwhile_is_not_revived(replicas: Replicas) -> None:
    async with replicas.paused(OLD, Announcement(holds=held(C), images=(IMAGE,))) as announcing:
        await replicas.second.open(NEW)
        await replicas.second.announce(NEW, Announcement(reset=True, holds=held(A, B)))
        assert await replicas.holders(C) == []
    assert isinstance(announcing.exception(), SessionLost)
    assert await replicas.holders(C) == []
    assert (await replicas.second.images([NAME]))[NAME] == ()
    assert await replicas.second.inventory(NEW) == Inventory.of([A, B])


async def test_a_restarted_node_does_not_get_back_what_its_process_before_held(replicas: Replicas) -> None:
    async with replicas.paused(OLD, Announcement(holds=held(C))) as announcing:
        await replicas.second.open(RESTARTED)
        await replicas.second.announce(RESTARTED, Announcement(reset=True, holds=held(A)))
    assert isinstance(announcing.exception(), SessionLost)
    assert await replicas.holders(A) == [(RESTARTED.epoch, RESTARTED.incarnation)]
    assert await replicas.holders(C) == []


@pytest.mark.parametrize(
    "news",
    [
        Announcement(withdraws=(A,), withdrawn_images=(NAME,)),
        Announcement(reset=True, holds=held(B)),
    ],
    ids=["withdrawal", "full announcement without it"],
)
async def test_what_the_new_session_has_announced_is_not_erased(replicas: Replicas, news: Announcement) -> None:
    async with replicas.paused(OLD, news):
        await replicas.second.open(NEW)
        await replicas.second.announce(NEW, Announcement(reset=True, holds=held(A, B), images=(IMAGE,)))
    assert await replicas.holders(A) == [(NEW.epoch, NEW.incarnation)]
    assert await replicas.holders(B) == [(NEW.epoch, NEW.incarnation)]
    assert [entry.image for entry in (await replicas.second.images([NAME]))[NAME]] == [IMAGE]
    assert await replicas.second.inventory(NEW) == Inventory.of([A, B])


async def test_what_a_session_holds_since_before_stays_when_a_late_withdrawal_of_it_comes(replicas: Replicas) -> None:
    """The new session has not announced the blob again: it was known, and the node has it still."""
    await replicas.second.open(NEW)
    with pytest.raises(SessionLost):
        await replicas.first.announce(OLD, Announcement(withdraws=(A,)))
    assert [incarnation for _, incarnation in await replicas.holders(A)] == [7]
    assert await replicas.second.inventory(NEW) == Inventory.of([A, B])
