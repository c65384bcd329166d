"""The demo's registry, asked as container runtimes ask."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import httpx2
import pytest

from stafett.cli.demo.upstream import make_app
from stafett.cli.local_cluster.images import MadeImage, make_image
from stafett.common import oci
from stafett.common.blob_files import blob_path

PLATFORM = "linux/amd64"
UNLIMITED = 0


@pytest.fixture
def image(tmp_path: Path) -> MadeImage:
    return make_image(tmp_path, "registry.demo/shop/frontend:1.0", {PLATFORM: [300_000]})


@pytest.fixture
async def client(tmp_path: Path, image: MadeImage) -> AsyncIterator[httpx2.AsyncClient]:
    transport = httpx2.ASGITransport(make_app(tmp_path, UNLIMITED))
    async with httpx2.AsyncClient(transport=transport, base_url="http://upstream/v2/shop/frontend") as client:
        yield client


async def test_a_tag_and_its_digest_give_the_same_manifest_with_its_type(
    client: httpx2.AsyncClient, image: MadeImage
) -> None:
    for reference in ("1.0", str(image.index.digest)):
        answer = await client.get(f"/manifests/{reference}")
        assert answer.status_code == 200
        assert answer.headers["content-type"] == oci.OCI_INDEX
        assert answer.headers["docker-content-digest"] == str(image.index.digest)
        assert len(answer.content) == image.index.size_bytes


async def test_blobs_come_whole_in_part_and_not_at_all_after_their_end(
    client: httpx2.AsyncClient, image: MadeImage, tmp_path: Path
) -> None:
    layer = image.blobs[PLATFORM][1]
    content, url = blob_path(tmp_path, layer.digest).read_bytes(), f"/blobs/{layer.digest}"
    assert (await client.get(url)).content == content
    rest = await client.get(url, headers={"Range": "bytes=100000-"})
    assert (rest.status_code, rest.content) == (206, content[100_000:])
    assert rest.headers["content-range"] == f"bytes 100000-{layer.size_bytes - 1}/{layer.size_bytes}"
    beyond = await client.get(url, headers={"Range": f"bytes={layer.size_bytes}-"})
    assert beyond.status_code == 416


async def test_only_what_is_sent_counts_as_served(client: httpx2.AsyncClient, image: MadeImage) -> None:
    layer = image.blobs[PLATFORM][1]
    head = await client.head(f"/blobs/{layer.digest}")
    assert (head.headers["content-length"], head.content) == (str(layer.size_bytes), b"")
    await client.get("http://upstream/v2/")
    assert (await client.get("http://upstream/stats")).json() == {"served_bytes": 0}
    await client.get(f"/blobs/{layer.digest}", headers={"Range": "bytes=0-9"})
    assert (await client.get("http://upstream/stats")).json() == {"served_bytes": 10}


@pytest.mark.parametrize("path", ["manifests/2.0", f"manifests/sha256:{'0' * 64}", "manifests/sha256:1", "blobs/1:2"])
async def test_what_is_not_there_is_not_found(client: httpx2.AsyncClient, path: str) -> None:
    answer = await client.get(f"/{path}")
    assert answer.status_code == 404
    assert answer.json()["errors"][0]["code"] in ("MANIFEST_UNKNOWN", "BLOB_UNKNOWN")


async def test_all_bodies_together_are_held_to_the_rate(tmp_path: Path, image: MadeImage) -> None:
    layer = image.blobs[PLATFORM][1]
    transport = httpx2.ASGITransport(make_app(tmp_path, 1_000_000))
    async with httpx2.AsyncClient(transport=transport, base_url="http://upstream") as client:
        started_at = time.monotonic()
        await asyncio.gather(*(client.get(f"/v2/shop/frontend/blobs/{layer.digest}") for _ in range(2)))
    assert time.monotonic() - started_at > 2 * layer.size_bytes / 1_000_000 - 0.2, "a tenth of a second's worth is free"
