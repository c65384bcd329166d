"""Keeps the list of what this host holds, and publishes it whenever it changes.

Sources: a full listing at the start, at every hint of the store and at a fixed interval; digests that the gateway says
are being pulled, looked for until they are there; reads that find something missing.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NoReturn

import structlog

from stafett.common.backoff import backoff_seconds
from stafett.common.cluster import HeldImage
from stafett.common.digest import Digest
from stafett.common.errors import BlobUnknown, DigestInvalid, ManifestInvalid, NameInvalid, Unavailable
from stafett.common.oci import MANIFEST_MAX_BYTES, Index, Manifest, StoredImage, parse_manifest
from stafett.common.reference import Reference
from stafett.node.completeness import Extent, extent_of
from stafett.node.ports import ContentStore

log = structlog.get_logger()

SETTLE_SECONDS = 0.2
"""Hints that come in quick succession share one listing."""
EXPECT_POLL_SECONDS = 0.25
EXPECT_SECONDS = 600.0
EXPECTED_MAX = 10_000
DOCUMENTS_MAX = 20_000

Publish = Callable[[Mapping[Digest, int], Mapping[str, HeldImage]], None]


class Indexer:
    """The inventory of one store. `publish` gets blobs with sizes and images by name; both are never changed after."""

    def __init__(self, store: ContentStore, publish: Publish, relist_interval_seconds: float) -> None:
        self._store = store
        self._publish = publish
        self._interval = relist_interval_seconds
        self._blobs: Mapping[Digest, int] = {}
        self._images: Mapping[str, HeldImage] = {}
        self._documents: dict[Digest, Manifest | Index | None] = {}
        self._expected: dict[Digest, float] = {}
        self._hinted = asyncio.Event()
        self._expecting = asyncio.Event()
        self._condemned: set[Digest] = set()
        self._noted: set[Digest] = set()
        self._missing: set[Digest] = set()
        self._discarding_reported = False
        self.store_available = False
        self.listed_at = time.monotonic()
        """When the list was last known to be true; at first, when this process started."""

    async def run(self) -> None:
        """Keep the inventory true, for ever."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._follow_hints())
            group.create_task(self._list_when_due())
            group.create_task(self._look_for_expected())

    @property
    def held_bytes(self) -> int:
        """Bytes of all held blobs."""
        return sum(self._blobs.values())

    @property
    def held_blobs(self) -> int:
        """Number of held blobs."""
        return len(self._blobs)

    @property
    def condemned_blobs(self) -> int:
        """Number of blobs in the store that are not shared, as their bytes are wrong."""
        return len(self._condemned)

    def size_of(self, digest: Digest) -> int | None:
        """Tell the size of a held blob."""
        return self._blobs.get(digest)

    def expect(self, digests: Iterable[Digest]) -> None:
        """Look for these until they are there, for up to ten minutes."""
        deadline = time.monotonic() + EXPECT_SECONDS
        for digest in digests:
            if digest not in self._blobs and len(self._expected) < EXPECTED_MAX:
                self._expected[digest] = deadline
                self._expecting.set()

    def evict(self, digest: Digest) -> None:
        """A read found the blob missing: withdraw it at once and list again soon.

        A store may go on listing it, as containerd does when a file is lost behind its back.
        """
        self._missing.add(digest)
        if digest in self._blobs:
            self._set_blobs({held: size for held, size in self._blobs.items() if held != digest})
        self._hinted.set()

    async def condemn(self, digest: Digest) -> None:
        """The bytes of a blob are wrong: withdraw it, and never list it again while it stays in the store."""
        self._condemned.add(digest)
        self.evict(digest)
        try:
            await self._store.condemn(digest)
        except Unavailable as error:
            log.warning("condemned_until_restart", digest=str(digest), part=error.part, reason=error.reason)

    async def look_up(self, digest: Digest) -> int | None:
        """Ask the store itself for a blob that is not listed yet; it is from then on."""
        size = None if digest in self._condemned else await self._store.size_of(digest)
        if size is not None:
            self._set_blobs({**self._blobs, digest: size})
        return size

    async def _follow_hints(self) -> NoReturn:
        rng = random.Random()
        attempt = 0
        while True:
            try:
                async for _ in self._store.changes():
                    attempt = 0
                    self._hinted.set()
            except Unavailable as error:
                if attempt == 0:
                    log.warning(
                        "store_away", part=error.part, reason=error.reason, remedy="waiting for it to come back"
                    )
                self.store_available = False
            await asyncio.sleep(backoff_seconds(attempt, cap=2.0, rng=rng))
            attempt += 1

    async def _list_when_due(self) -> NoReturn:
        while True:
            try:
                async with asyncio.timeout(self._interval):
                    await self._hinted.wait()
                    await asyncio.sleep(SETTLE_SECONDS)
            except TimeoutError:
                pass
            self._hinted.clear()
            try:
                await self._list()
                self.store_available = True
                self.listed_at = time.monotonic()
            except Unavailable as error:
                log.info("listing_failed", part=error.part, reason=error.reason)
                self.store_available = False

    async def _list(self) -> None:
        listed = await self._store.list_blobs()
        noted = set(await self._store.condemned())
        self._condemned = noted | (self._condemned & listed.keys() - self._noted)  # without its note it is a new copy
        self._noted = noted
        self._missing = {d for d in self._missing & listed.keys() if await self._store.size_of(d) is None}
        hidden = self._condemned | self._missing
        blobs = {digest: size for digest, size in listed.items() if digest not in hidden}
        images = await self._held_images(await self._store.list_images(), blobs)
        if blobs != self._blobs or images != self._images:
            self._blobs, self._images = blobs, images
            self._publish(blobs, images)

    def _set_blobs(self, blobs: Mapping[Digest, int]) -> None:
        self._blobs = blobs
        self._publish(blobs, self._images)

    async def _look_for_expected(self) -> NoReturn:
        while True:
            await self._expecting.wait()
            now = time.monotonic()
            self._expected = {d: until for d, until in self._expected.items() if until > now and d not in self._blobs}
            arrived: dict[Digest, int] = {}
            try:
                for digest in list(self._expected):
                    size = await self._store.size_of(digest)
                    if size is not None and digest not in self._condemned:
                        arrived[digest] = size
            except Unavailable:
                self.store_available = False
            if arrived:
                self._set_blobs({**self._blobs, **arrived})
            if not self._expected:
                self._expecting.clear()
            await asyncio.sleep(EXPECT_POLL_SECONDS)

    async def _held_images(self, images: Sequence[StoredImage], blobs: Mapping[Digest, int]) -> dict[str, HeldImage]:
        held: dict[str, HeldImage] = {}
        extents: list[Extent] = []
        for image in images:
            name = _tagged_name(image.name)
            if name is None or image.target.digest not in blobs:
                continue
            await self._load_documents(image.target.digest, blobs)
            extent = extent_of(image.target.digest, blobs, self._documents.get)
            extents.append(extent)
            entry = _held(name, image, extent)
            if name not in held or held[name].updated_at_unix_ms < entry.updated_at_unix_ms:
                held[name] = entry
        self._report_discarding(extents)
        return held

    async def _load_documents(self, target: Digest, blobs: Mapping[Digest, int]) -> None:
        """Parse the target, and the manifests below an index; each once, as content never changes."""
        root = await self._document(target, blobs)
        if isinstance(root, Index):
            for child in root.manifests:
                await self._document(child.digest, blobs)

    async def _document(self, digest: Digest, blobs: Mapping[Digest, int]) -> Manifest | Index | None:
        size = blobs.get(digest)
        if size is None or digest in self._documents:
            return self._documents.get(digest)
        try:
            document = parse_manifest(await self._read_small(digest, size))
        except (BlobUnknown, OSError):
            return None
        except ManifestInvalid as error:
            log.warning("manifest_damaged", digest=str(digest), problem=str(error))
            document = None
        if len(self._documents) >= DOCUMENTS_MAX:
            self._documents.clear()
        self._documents[digest] = document
        return document

    async def _read_small(self, digest: Digest, size_bytes: int) -> bytes:
        if size_bytes > MANIFEST_MAX_BYTES:
            raise ManifestInvalid(f"it has {size_bytes} bytes")
        reader = await self._store.open(digest)
        try:
            return b"".join([chunk async for chunk in reader.chunks(0, reader.size_bytes)])
        finally:
            reader.close()

    def _report_discarding(self, extents: Sequence[Extent]) -> None:
        if extents and not self._discarding_reported and all(extent.layers_discarded for extent in extents):
            self._discarding_reported = True
            log.warning(
                "layers_discarded",
                remedy="containerd drops layers after unpacking, so there is nothing to share: "
                "set discard_unpacked_layers = false in containerd's CRI settings",
            )


def _tagged_name(name: str) -> str | None:
    """Canonical name of a tagged image; None for bare ids and names by digest, which CRI records beside it."""
    if "@" in name or name.startswith("sha256:"):
        return None
    try:
        return Reference.parse(name).tagged_name
    except (NameInvalid, DigestInvalid):
        return None


def _held(name: str, image: StoredImage, extent: Extent) -> HeldImage:
    return HeldImage(
        name,
        image.target.digest,
        image.target.media_type,
        image.target.size_bytes,
        extent.content_bytes,
        extent.complete,
        image.updated_at_unix_ms,
    )
