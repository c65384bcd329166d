"""The indexer over real stores: what is published, when, and what it survives."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from stafett.cli.local_cluster.containerd import Containerd
from stafett.cli.local_cluster.images import MadeImage, make_image
from stafett.cli.local_cluster.processes import Processes
from stafett.common import oci_layout
from stafett.common.blob_files import blob_path
from stafett.common.cluster import HeldImage
from stafett.common.digest import Digest
from stafett.common.errors import Unavailable
from stafett.node.indexer import Indexer
from stafett.node.ports import ContentStore
from tests.integration.node.hosts import PLATFORM, ContainerdHost, LayoutHost, becomes

NAME = "registry.test/lib/app:1"
NEVER = 3600.0


class Told:
    """What the indexer has published last."""

    def __init__(self) -> None:
        self.blobs: Mapping[Digest, int] = {}
        self.images: Mapping[str, HeldImage] = {}

    def publish(self, blobs: Mapping[Digest, int], images: Mapping[str, HeldImage]) -> None:
        self.blobs, self.images = blobs, images

    def holds(self, name: str) -> bool:
        return name in self.images and self.images[name].complete


@asynccontextmanager
async def indexing(store: ContentStore, *, relist_seconds: float = NEVER) -> AsyncIterator[tuple[Indexer, Told]]:
    told = Told()
    indexer = Indexer(store, told.publish, relist_seconds)
    running = asyncio.create_task(indexer.run())
    try:
        yield indexer, told
        assert not running.done(), running.exception()
    finally:
        running.cancel()
        await asyncio.wait([running])
        await store.close()


@pytest.fixture
def host(tmp_path: Path, disk: ThreadPoolExecutor) -> LayoutHost:
    return LayoutHost(tmp_path / "layout", disk)


def move_blob(source: Path, target: Path, digest: Digest) -> None:
    blob_path(source, digest).rename(blob_path(target, digest))


async def drained(changes: AsyncIterator[None]) -> None:
    async for _ in changes:
        pass


def problems(logs: Iterable[Mapping[str, object]]) -> list[str]:
    return [str(entry["problem"]) for entry in logs if entry["event"] == "layout_damaged"]


async def test_an_image_is_published_with_its_extent(host: LayoutHost) -> None:
    image = await host.receive(NAME, 5_000, 200)
    async with indexing(host.store) as (indexer, told):
        await becomes(lambda: told.holds(NAME))
        held = told.images[NAME]
        assert held.target == image.index.digest
        assert held.target_media_type == image.index.media_type
        assert held.content_bytes == image.pulled_bytes(PLATFORM) == sum(told.blobs.values())
        await becomes(lambda: indexer.store_available)
        assert indexer.size_of(image.index.digest) == image.index.size_bytes


async def test_an_expected_blob_is_published_as_soon_as_it_is_there(
    host: LayoutHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    silent = asyncio.Event()

    async def no_hints() -> AsyncIterator[None]:
        await silent.wait()
        yield

    monkeypatch.setattr(host.store, "changes", no_hints)
    elsewhere = tmp_path / "elsewhere"
    image = make_image(elsewhere, NAME, {PLATFORM: [5_000, 6_000]})
    first, second = (part.digest for part in image.blobs[PLATFORM][1:])
    async with indexing(host.store) as (indexer, told):
        indexer.expect([first, second])
        move_blob(elsewhere, host.root, first)
        await becomes(lambda: first in told.blobs)
        assert second not in told.blobs
        move_blob(elsewhere, host.root, second)
        await becomes(lambda: {first, second} == set(told.blobs))


async def test_a_blob_that_a_read_missed_is_withdrawn_at_once(host: LayoutHost) -> None:
    image = await host.receive(NAME, 5_000)
    layer = image.blobs[PLATFORM][1].digest
    async with indexing(host.store) as (indexer, told):
        await becomes(lambda: told.holds(NAME))
        await host.lose(layer)
        indexer.evict(layer)
        assert layer not in told.blobs
        assert indexer.size_of(layer) is None
        await becomes(lambda: not told.holds(NAME))


async def test_a_blob_evicted_by_mistake_comes_back(host: LayoutHost) -> None:
    image = await host.receive(NAME, 5_000)
    layer = image.blobs[PLATFORM][1].digest
    async with indexing(host.store) as (indexer, told):
        await becomes(lambda: told.holds(NAME))
        indexer.evict(layer)
        await becomes(lambda: layer in told.blobs)


async def test_a_blob_that_is_not_listed_yet_is_looked_up_in_the_store(host: LayoutHost) -> None:
    image = await host.receive(NAME, 5_000)
    layer = image.blobs[PLATFORM][1]
    told = Told()
    indexer = Indexer(host.store, told.publish, NEVER)
    assert await indexer.look_up(Digest.of(b"absent")) is None
    assert await indexer.look_up(layer.digest) == layer.size_bytes
    assert told.blobs == {layer.digest: layer.size_bytes}


async def test_of_two_tags_on_one_image_one_can_go(host: LayoutHost) -> None:
    image = await host.receive(NAME, 5_000)
    other = "registry.test/lib/app:latest"
    oci_layout.add_image(host.root, other, image.index)
    async with indexing(host.store) as (_, told):
        await becomes(lambda: told.holds(NAME) and told.holds(other))
        blobs = told.blobs
        oci_layout.remove_image(host.root, NAME)
        await becomes(lambda: set(told.images) == {other})
        assert told.blobs == blobs
        assert told.images[other].complete


async def test_only_names_by_tag_are_published(host: LayoutHost) -> None:
    image = await host.receive(NAME, 5_000)
    by_digest = f"registry.test/lib/app@{image.index.digest}"
    for name in (by_digest, str(image.index.digest), "Not A Name", "busybox"):
        oci_layout.add_image(host.root, name, image.index)
    async with indexing(host.store) as (_, told):
        await becomes(lambda: told.holds(NAME))
        assert set(told.images) == {NAME, "docker.io/library/busybox:latest"}


async def test_what_is_damaged_is_skipped_and_reported_once(host: LayoutHost) -> None:
    image = await host.receive(NAME, 5_000)
    damage_entry(host.root)
    blobs = host.root / "blobs" / "sha256"
    (blobs / "README").write_text("foreign")
    (blobs / ("e" * 64)).symlink_to("nowhere")
    with capture_logs() as logs:
        async with indexing(host.store, relist_seconds=0.2) as (_, told):
            await becomes(lambda: told.holds(NAME))
            later = await host.receive("registry.test/lib/app:2", 100, seed=2)
            await becomes(lambda: told.holds("registry.test/lib/app:2"))
            for _ in range(2):
                await host.store.list_blobs()
                await host.store.list_images()
    assert {image.index.digest, later.index.digest} <= set(told.blobs)
    assert sorted(line.split()[0] for line in problems(logs)) == ["README", "e" * 64, "entry"]


def damage_entry(root: Path) -> None:
    path = root / "index.json"
    document = json.loads(path.read_text())
    document["manifests"].append({"digest": "sha256:short", "size": 1, "annotations": {}})
    document["manifests"][-1]["annotations"][oci_layout.REF_NAME] = "registry.test/bad:1"
    path.write_text(json.dumps(document))


@pytest.mark.parametrize("content", ["{", "[]", '{"manifests": 3}', "\udcff"])
async def test_a_broken_image_list_leaves_the_blobs_served(host: LayoutHost, content: str) -> None:
    image = await host.receive(NAME, 5_000)
    (host.root / "index.json").write_bytes(content.encode("utf-8", "surrogateescape"))
    with capture_logs() as logs:
        async with indexing(host.store) as (_, told):
            await becomes(lambda: image.index.digest in told.blobs)
            assert told.images == {}
            again = await repaired(host)
            await becomes(lambda: told.holds(again.name))
    assert len(problems(logs)) == 1


async def repaired(host: LayoutHost) -> MadeImage:
    (host.root / "index.json").write_text('{"schemaVersion": 2, "manifests": []}')
    return await host.receive("registry.test/lib/app:3", 100, seed=3)


async def test_a_manifest_that_is_none_makes_an_image_incomplete(host: LayoutHost) -> None:
    image = await host.receive(NAME, 5_000)
    path = blob_path(host.root, image.index.digest)
    path.chmod(0o644)
    path.write_text("not json")
    async with indexing(host.store) as (_, told):
        await becomes(lambda: NAME in told.images)
        assert not told.images[NAME].complete


@pytest.mark.needs_root
@pytest.mark.needs_program("containerd")
async def test_after_a_restart_of_containerd_the_inventory_is_true_again(
    containerd: Containerd, processes: Processes, tmp_path: Path, disk: ThreadPoolExecutor
) -> None:
    host = ContainerdHost(containerd, tmp_path, disk, mounted=True)
    await host.receive(NAME, 5_000)
    changes = host.store.changes()
    await anext(changes)
    async with indexing(host.store) as (indexer, told):
        await becomes(lambda: told.holds(NAME))
        assert containerd.process is not None
        await asyncio.to_thread(containerd.process.stop)
        with pytest.raises(Unavailable):
            await drained(changes)
        await becomes(lambda: not indexer.store_available)
        assert told.holds(NAME), "a store that is away has lost nothing"
        await asyncio.to_thread(containerd.start, processes, "containerd")
        await host.receive("registry.test/lib/app:2", 100, seed=2)
        await becomes(lambda: told.holds("registry.test/lib/app:2") and indexer.store_available)
        await becomes(lambda: told.holds(NAME))


@pytest.mark.needs_root
@pytest.mark.needs_program("containerd")
@pytest.mark.parametrize("mounted", [True, False])
async def test_a_wrong_copy_is_not_announced_again_by_the_next_process_until_it_was_removed_and_pulled_anew(
    containerd: Containerd, tmp_path: Path, disk: ThreadPoolExecutor, mounted: bool
) -> None:
    host = ContainerdHost(containerd, tmp_path, disk, mounted=mounted)
    layer = (await host.receive(NAME, 5_000)).blobs[PLATFORM][1].digest
    async with indexing(host.store) as (indexer, told):
        await becomes(lambda: told.holds(NAME))
        await indexer.condemn(layer)
        assert layer not in told.blobs
    restarted = ContainerdHost(containerd, tmp_path, disk, mounted=mounted)
    async with indexing(restarted.store) as (indexer, told):
        await becomes(lambda: NAME in told.images)
        assert layer not in told.blobs
        assert await indexer.look_up(layer) is None
        assert not told.images[NAME].complete
        await restarted.lose(layer)
        await restarted.receive(NAME, 5_000)
        await becomes(lambda: told.holds(NAME))
