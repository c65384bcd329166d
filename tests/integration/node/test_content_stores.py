"""What `ports.ContentStore` promises, asked of every adapter."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from stafett.cli.local_cluster.containerd import Containerd
from stafett.cli.local_cluster.images import MadeImage
from stafett.common.blob_codec import CHUNK_BYTES
from stafett.common.digest import Digest
from stafett.common.errors import BlobUnknown
from stafett.node.ports import BlobReader
from tests.integration.node.hosts import PLATFORM, ContainerdHost, Host, LayoutHost, eventually

CONTAINERD = [pytest.mark.needs_root, pytest.mark.needs_program("containerd")]
ABSENT = Digest.of(b"nobody has this")
NAME = "registry.test/lib/app:1"
BIG = 2 * CHUNK_BYTES + 12_345


FILE_STORES = ["layout", pytest.param("containerd-files", marks=CONTAINERD)]
ALL_STORES = [*FILE_STORES, pytest.param("containerd-api", marks=CONTAINERD)]


@pytest.fixture(params=ALL_STORES)
async def host(request: pytest.FixtureRequest, tmp_path: Path, disk: ThreadPoolExecutor) -> Host:
    if request.param == "layout":
        return LayoutHost(tmp_path / "layout", disk)
    daemon: Containerd = request.getfixturevalue("containerd")
    return ContainerdHost(daemon, tmp_path, disk, mounted=request.param == "containerd-files")


def sizes_of(image: MadeImage) -> dict[Digest, int]:
    parts = (image.index, *image.manifests.values(), *image.blobs[PLATFORM])
    return {part.digest: part.size_bytes for part in parts}


async def read(reader: BlobReader, offset: int, length: int) -> list[bytes]:
    return [bytes(chunk) async for chunk in reader.chunks(offset, length)]


async def test_a_new_store_is_empty(host: Host) -> None:
    assert await host.store.list_blobs() == {}
    assert not await host.store.list_images()
    await host.store.close()


async def test_blobs_and_images_are_listed_as_they_arrived(host: Host) -> None:
    before = int(time.time() * 1000) - 2_000
    image = await host.receive(NAME, 50_000, 3_000)
    listed = await host.store.list_blobs()
    assert sizes_of(image).items() <= listed.items()
    assert len(listed) <= len(sizes_of(image)) + 1, "containerd keeps an imported archive's index.json besides"
    (stored,) = await host.store.list_images()
    assert stored.name == NAME
    assert stored.target == image.index
    assert before < stored.updated_at_unix_ms <= time.time() * 1000 + 2_000
    await host.store.close()


async def test_a_name_that_moves_points_to_the_newer_image(host: Host) -> None:
    old = await host.receive(NAME, 1_000, seed=1)
    (first,) = await host.store.list_images()
    await asyncio.sleep(0.05)  # a file's time moves in steps
    new = await host.receive(NAME, 1_000, seed=2)
    (second,) = await host.store.list_images()
    assert (first.target, second.target) == (old.index, new.index)
    assert second.updated_at_unix_ms > first.updated_at_unix_ms
    await host.store.close()


async def test_a_single_blob_can_be_asked_for(host: Host) -> None:
    image = await host.receive(NAME, 50_000)
    for digest, size in sizes_of(image).items():
        assert await host.store.size_of(digest) == size
    assert await host.store.size_of(ABSENT) is None
    await host.store.close()


async def test_any_range_of_a_blob_can_be_read(host: Host) -> None:
    image = await host.receive(NAME, BIG)
    layer = image.blobs[PLATFORM][1]
    reader = await host.store.open(layer.digest)
    size = reader.size_bytes
    assert size == layer.size_bytes
    chunks = await read(reader, 0, size)
    whole = b"".join(chunks)
    assert Digest.of(whole) == layer.digest
    assert all(0 < len(chunk) <= CHUNK_BYTES for chunk in chunks)
    for offset, length in ((0, 1), (1, CHUNK_BYTES), (CHUNK_BYTES - 1, CHUNK_BYTES + 2), (size - 7, 7), (size, 0)):
        assert b"".join(await read(reader, offset, length)) == whole[offset : offset + length]
    reader.close()
    reader.close()
    await host.store.close()


async def test_an_absent_blob_cannot_be_opened(host: Host) -> None:
    await host.receive(NAME, 10)
    with pytest.raises(BlobUnknown):
        await host.store.open(ABSENT)
    await host.store.close()


async def test_a_lost_blob_is_gone_from_every_answer(host: Host) -> None:
    image = await host.receive(NAME, 5_000)
    layer = image.blobs[PLATFORM][1].digest
    await host.lose(layer)
    assert await host.store.size_of(layer) is None
    assert layer not in await host.store.list_blobs()

    async def unknown() -> bool:  # containerd's garbage collector removes the file a little later
        try:
            (await host.store.open(layer)).close()
        except BlobUnknown:
            return True
        return False

    await eventually(unknown)
    await host.store.close()


async def test_an_open_blob_stays_readable_when_the_store_drops_it(host: Host) -> None:
    image = await host.receive(NAME, BIG)
    layer = image.blobs[PLATFORM][1]
    reader = await host.store.open(layer.digest)
    chunks = reader.chunks(0, reader.size_bytes)
    head = bytes(await anext(chunks))
    await host.lose(layer.digest)
    rest = [bytes(chunk) async for chunk in chunks]
    assert Digest.of(b"".join((head, *rest))) == layer.digest
    reader.close()
    await host.store.close()


async def test_a_change_is_hinted_when_an_image_arrives(host: Host) -> None:
    changes = host.store.changes()
    await anext(changes)
    image = await host.receive(NAME, 5_000)

    async def hinted_and_listed() -> bool:
        await anext(changes)
        return image.index.digest in await host.store.list_blobs() and bool(await host.store.list_images())

    await eventually(hinted_and_listed)
    await changes.aclose()
    await host.store.close()


@pytest.mark.parametrize("host", FILE_STORES, indirect=True)  # no API of containerd reads unfinished downloads
async def test_downloads_under_way_are_seen_as_they_grow_and_abandoned_ones_can_be_dropped(host: Host) -> None:
    content = bytes(range(256)) * 16384
    digest = Digest.of(content)

    async def received() -> bytes:
        return b"".join([each.data.read_bytes() for each in await host.store.ingests() if each.digest == digest])

    async def grown() -> bool:
        return len(await received()) >= 1_000_000

    with host.receiving(digest) as write:
        await asyncio.to_thread(write, content[:3_000_000])
        await eventually(grown)
        assert content.startswith(await received())
    (abandoned,) = await host.store.ingests()
    await host.store.abort(abandoned)
    assert await host.store.ingests() == []
    await host.store.abort(abandoned)
    assert await host.store.size_of(digest) is None
    await host.store.close()
