"""Who holds which blobs and images, in Redis. See docs/decisions/0002-holdings.md.

Three kinds of slots: of a node (what it has announced, with count and xor), of a digest (its holders by topology
bucket), of an image name. The node's slot is written first and fences; entries of the others carry the epoch that
wrote them.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import cast

from stafett.common.cluster import Announcement, HeldBlob, HeldImage
from stafett.common.digest import Digest
from stafett.common.errors import SessionLost
from stafett.common.inventory import Inventory
from stafett.common.topology import Topology
from stafett.tracker.image_names import ImageEntry
from stafett.tracker.proximity import Entry, bucket_of, reserve_for_far
from stafett.tracker.redis_link import RedisLink

KEEP_SECONDS = 24 * 3600
"""Life of entries that nobody refreshes: a safety net for what a clean-up has missed."""
LOCATE_SECONDS = 0.3
_IMAGES = "stafett:images"
_BULK_CALLS = 200
_BULK_EXCHANGES = 4

Call = tuple[str, Sequence[str], Sequence[str | int]]


@dataclass(frozen=True, slots=True)
class Owner:
    """The session in whose name holdings are written, and where its node stands."""

    node_id: str
    epoch: int
    incarnation: int
    topology: Topology


@dataclass(frozen=True, slots=True)
class Opened:
    """What the index has of a node's running process; `known` is False when nothing was ever announced."""

    known: bool
    inventory: Inventory = field(default_factory=Inventory)
    age_seconds: float = 0.0


class HoldingsStore:
    """Adapter of the holdings. Every method raises `Unavailable` while Redis is away."""

    def __init__(self, link: RedisLink, rng: random.Random) -> None:
        self._link = link
        self._rng = rng
        self._bulk = asyncio.Semaphore(_BULK_EXCHANGES)

    async def open(self, owner: Owner) -> Opened:
        """Let a new session write; what an earlier process of the node had announced is removed.

        Raises:
            SessionLost: if a newer session has come first.
        """
        bucket = bucket_of(owner.topology)
        args: list[str | int] = [owner.epoch, f"{owner.incarnation:x}", bucket]
        verdict, *rest = await self._link.run("open_held", _held_keys(owner.node_id), args)
        if verdict == "-1":
            raise SessionLost(owner.node_id, owner.epoch)
        if verdict == "1":
            return Opened(True, Inventory(int(rest[0]), int(str(rest[1]), 16)), int(rest[2]) / 1000)
        epoch, old_bucket, *void = map(str, rest)
        await self._drop(owner.node_id, int(epoch), old_bucket, *_split(void))
        return Opened(False)

    async def announce(self, owner: Owner, news: Announcement) -> None:
        """Put changes into the index. Idempotent, so a call that failed may be made again.

        Raises:
            SessionLost: if the session is fenced, or was before all was written; nothing has changed then.
        """
        identity: list[str | int] = [owner.epoch, f"{owner.incarnation:x}"]
        blobs = [blob.digest.hex for blob in news.holds]
        names = [image.name for image in news.images]
        head = [*identity, int(news.reset), KEEP_SECONDS, len(news.holds)]
        verdict, *void = map(str, await self._link.run("hold", _held_keys(owner.node_id), [*head, *blobs, *names]))
        if verdict == "0":
            raise SessionLost(owner.node_id, owner.epoch)
        digests, images = _split(void)
        digests = [*digests, *(digest.hex for digest in news.withdraws)]
        images = [*images, *news.withdrawn_images]
        bucket = bucket_of(owner.topology)
        await self._write([_put_blob(owner, bucket, blob) for blob in news.holds])
        await self._write([_put_image(owner, image) for image in news.images])
        if names:
            await self._link.commands([("SADD", _IMAGES, *names)])
        await self._take_back_if_fenced(owner, bucket, blobs, names)
        if digests or images:
            await self._drop(owner.node_id, owner.epoch, bucket, digests, images)
            await self._link.run("unhold", _held_keys(owner.node_id), [*identity, len(digests), *digests, *images])

    async def inventory(self, owner: Owner) -> Inventory | None:
        """Sum up what the index has of the session's node; None if it has nothing."""
        [found] = await self._link.commands(
            [("HMGET", _held_keys(owner.node_id)[0], "incarnation", "count", "xor")],
        )
        incarnation, count, folded = cast(Sequence[str | None], found)
        if incarnation != f"{owner.incarnation:x}" or count is None or folded is None:
            return None
        return Inventory(int(count), int(folded, 16))

    async def blob_counts(self, node_ids: Sequence[str]) -> list[int]:
        """Count the blobs of each node."""
        counts = await self._link.commands([("HGET", _held_keys(node_id)[0], "count") for node_id in node_ids])
        return [int(cast(str | None, count) or 0) for count in counts]

    async def locate(self, digests: Sequence[Digest], place: Topology, most: int) -> list[tuple[list[Entry], bool]]:
        """Find entries of each digest, nearest first from `place`; True where there are more than those."""
        limits = (most + 1, reserve_for_far(most))
        parts = bucket_of(place).split("/")
        calls: list[Call] = [
            ("locate", [_digest_key(digest.hex)], [*parts, *limits, self._rng.randrange(1 << 31)]) for digest in digests
        ]
        replies = await self._link.run_all(calls, LOCATE_SECONDS)
        return [([_entry(*pair) for pair in _pairs(reply[1:])], bool(reply[0])) for reply in replies]

    async def drop_void(self, found: Iterable[tuple[Digest, Entry, Topology]]) -> None:
        """Delete entries whose node now stands at the given place but announced them as an earlier process."""
        calls = [_drop_blob(e.node_id, e.epoch, bucket_of(place), digest.hex) for digest, e, place in found]
        await self._link.run_all(calls)

    async def clear(self, node_id: str, epoch: int) -> None:
        """Remove all that a node has announced, unless a session newer than `epoch` has been opened."""
        reply = list(map(str, await self._link.run("clear_held", _held_keys(node_id), [epoch])))
        if reply:
            await self._drop(node_id, epoch, reply[0], *_split(reply[1:]))

    async def images(self, names: Sequence[str]) -> dict[str, tuple[ImageEntry, ...]]:
        """Read which nodes have each image name, and what it means there."""
        found: dict[str, tuple[ImageEntry, ...]] = {}
        for start in range(0, len(names), _BULK_CALLS):
            part = names[start : start + _BULK_CALLS]
            replies = await self._link.commands([("HGETALL", _image_key(name)) for name in part])
            for name, reply in zip(part, replies, strict=True):
                entries = cast(dict[str, str], reply)
                found[name] = tuple(_image_entry(name, node_id, value) for node_id, value in entries.items())
        return found

    async def all_images(self) -> dict[str, tuple[ImageEntry, ...]]:
        """Read all images; names that nobody has any more leave the list."""
        [names] = await self._link.commands([("SMEMBERS", _IMAGES)])
        found = await self.images(sorted(cast(set[str], names)))
        if empty := [name for name, entries in found.items() if not entries]:
            await self._link.commands([("SREM", _IMAGES, *empty)])
        return {name: entries for name, entries in found.items() if entries}

    async def _take_back_if_fenced(
        self, owner: Owner, bucket: str, digests: Sequence[str], images: Sequence[str]
    ) -> None:
        """Remove what was put while a newer session came that has it no more: nobody else would. Raises SessionLost."""
        meta, *held = _held_keys(owner.node_id)
        [found] = await self._link.commands([("HMGET", meta, "epoch", "incarnation")])
        if found == [str(owner.epoch), f"{owner.incarnation:x}"]:
            return
        asked = [(key, names) for key, names in zip(held, (digests, images), strict=True) if names]
        replies = await self._link.commands([("SMISMEMBER", key, *names) for key, names in asked])
        kept = {
            name
            for (_, names), reply in zip(asked, replies, strict=True)
            for name, known in zip(names, cast(Sequence[int], reply), strict=True)
            if known
        }
        gone = [[name for name in names if name not in kept] for names in (digests, images)]
        await self._drop(owner.node_id, owner.epoch, bucket, *gone)
        raise SessionLost(owner.node_id, owner.epoch)

    async def _drop(self, node_id: str, epoch: int, bucket: str, digests: Sequence[str], images: Sequence[str]) -> None:
        calls = [_drop_blob(node_id, epoch, bucket, digest) for digest in digests]
        calls += [("drop", [_image_key(name)], [node_id, epoch, ""]) for name in images]
        await self._write(calls)

    async def _write(self, calls: Sequence[Call]) -> None:
        """Run many scripts in small exchanges, few at a time: a flood of announcements leaves room for leases."""
        for start in range(0, len(calls), _BULK_CALLS):
            async with self._bulk:
                await self._link.run_all(calls[start : start + _BULK_CALLS])


def _held_keys(node_id: str) -> list[str]:
    held = f"stafett:held:{{{node_id}}}"
    return [f"{held}:meta", held, f"{held}:images"]


def _digest_key(digest_hex: str) -> str:
    return f"stafett:holders:{{sha256:{digest_hex}}}"


def _image_key(name: str) -> str:
    return f"stafett:image:{{{name}}}"


def _put_blob(owner: Owner, bucket: str, blob: HeldBlob) -> Call:
    index = _digest_key(blob.digest.hex)
    value = f"{owner.epoch} {owner.incarnation:x} {blob.size_bytes}"
    return ("put", [f"{index}:{bucket}", index], [owner.node_id, owner.epoch, value, KEEP_SECONDS, bucket])


def _drop_blob(node_id: str, epoch: int, bucket: str, digest_hex: str) -> Call:
    index = _digest_key(digest_hex)
    return ("drop", [f"{index}:{bucket}", index], [node_id, epoch, bucket])


def _put_image(owner: Owner, image: HeldImage) -> Call:
    sizes = f"{image.target_size_bytes} {image.content_bytes} {int(image.complete)} {image.updated_at_unix_ms}"
    value = f"{owner.epoch} {owner.incarnation:x} {image.target.hex} {sizes} {image.target_media_type}"
    return ("put", [_image_key(image.name)], [owner.node_id, owner.epoch, value, KEEP_SECONDS])


def _entry(node_id: str, value: str) -> Entry:
    epoch, incarnation, size = value.split(" ")
    return Entry(node_id, int(epoch), int(incarnation, 16), int(size))


def _image_entry(name: str, node_id: str, value: str) -> ImageEntry:
    _, incarnation, target, target_size, content, complete, updated, media_type = value.split(" ", 7)
    image = HeldImage(name, Digest(target), media_type, int(target_size), int(content), complete == "1", int(updated))
    return ImageEntry(node_id, int(incarnation, 16), image)


def _split(counted: Sequence[str]) -> tuple[Sequence[str], Sequence[str]]:
    """Split [number of digests, digests..., images...]."""
    end = 1 + int(counted[0])
    return counted[1:end], counted[end:]


def _pairs(words: Sequence[str | int]) -> Iterator[tuple[str, str]]:
    return zip(map(str, words[::2]), map(str, words[1::2]), strict=True)
