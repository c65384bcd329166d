"""`stafett pull` against registries that misbehave."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from stafett.cli.local_cluster.images import MadeImage, make_image
from stafett.cli.pull import Pulled, pull
from stafett.common import oci
from stafett.common.blob_files import blob_path
from stafett.common.digest import Digest
from stafett.common.errors import BlobUnknown, ManifestUnknown, RequestInvalid, StafettError, StartupFailed
from stafett.common.oci import Descriptor
from stafett.common.oci_layout import BlobWriter, add_image, ensure_layout, read_images
from tests.integration.cli.registry import (
    Answer,
    Registry,
    Request,
    absent,
    compressed_if_allowed,
    cut_after,
    running,
    too_long,
    wrong_bytes,
)

NAME = "reg.test/lib/app:1"
AMD, ARM = "linux/amd64", "linux/arm64/v8"


@pytest.fixture
def image(tmp_path: Path) -> MadeImage:
    return make_image(tmp_path / "origin", NAME, {AMD: [300_000, 20_000], ARM: [5_000]})


@pytest.fixture
def registry(tmp_path: Path, image: MadeImage) -> Registry:
    return Registry(tmp_path / "origin")


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "pulled"


async def test_a_pull_has_every_byte_of_its_platform_and_nothing_of_another(
    registry: Registry, image: MadeImage, target: Path
) -> None:
    result = await _pull([registry], target)
    assert result.digest == image.index.digest
    assert result.bytes_by_source == {"upstream": image.pulled_bytes(AMD)}
    assert _held(target) == _digests(image, AMD)
    assert [(found.name, found.target.digest) for found in read_images(target)[0]] == [(NAME, image.index.digest)]


async def test_all_platforms_are_pulled_on_request(registry: Registry, image: MadeImage, target: Path) -> None:
    await _pull([registry], target, platform=None)
    assert _held(target) == _digests(image, AMD) | _digests(image, ARM)


async def test_a_platform_without_variant_finds_the_one_that_has_it(
    registry: Registry, image: MadeImage, target: Path
) -> None:
    await _pull([registry], target, platform="linux/arm64")
    assert _held(target) == _digests(image, ARM)


async def test_an_absent_platform_is_refused_and_the_offered_ones_are_named(registry: Registry, target: Path) -> None:
    with pytest.raises(ManifestUnknown, match="linux/amd64, linux/arm64/v8"):
        await _pull([registry], target, platform="linux/s390x")


async def test_a_second_pull_fetches_no_blob_again(registry: Registry, target: Path) -> None:
    await _pull([registry], target)
    registry.requests.clear()
    await _pull([registry], target)
    assert registry.blob_requests == []


@pytest.mark.parametrize("index", ["{bad", "{}", "[]", '{"manifests": [1]}'])
async def test_a_damaged_layout_is_refused_before_anything_is_asked(
    registry: Registry, target: Path, index: str
) -> None:
    ensure_layout(target)
    (target / "index.json").write_text(index)
    with pytest.raises(StartupFailed, match="name another directory"):
        await _pull([registry], target)
    assert registry.requests == []


async def test_what_one_host_does_not_have_comes_from_the_next(
    registry: Registry, image: MadeImage, target: Path
) -> None:
    mirror = Registry(registry.layout, source="peer_zone", fault=absent)
    result = await _pull([mirror, registry], target)
    manifests = image.index.size_bytes + image.manifests[AMD].size_bytes
    assert result.bytes_by_source == {"peer_zone": manifests, "upstream": image.pulled_bytes(AMD) - manifests}


async def test_a_host_that_refuses_connections_costs_nothing_but_the_next_try(
    registry: Registry, image: MadeImage, target: Path
) -> None:
    await _pull([registry], target, before=["http://127.0.0.1:1"])
    assert _held(target) == _digests(image, AMD)


async def test_a_cut_body_goes_on_at_its_byte_and_at_the_first_host_again(
    registry: Registry, image: MadeImage, target: Path
) -> None:
    mirror = Registry(registry.layout, fault=cut_after(100_000))
    result = await _pull([mirror, registry], target)
    assert _held(target) == _digests(image, AMD)
    assert registry.blob_requests == [], "each try gave some bytes, so the second host is never needed"
    assert sum(result.bytes_by_source.values()) == image.pulled_bytes(AMD), "no byte was fetched twice"
    large = max(image.blobs[AMD], key=lambda blob: blob.size_bytes)
    starts = [request.range_start for request in mirror.blob_requests if str(large.digest) in request.target]
    assert starts == [0, 100_000, 200_000, 300_000]


async def test_an_unfinished_blob_of_an_earlier_pull_is_continued(
    registry: Registry, image: MadeImage, target: Path
) -> None:
    large = max(image.blobs[AMD], key=lambda blob: blob.size_bytes)
    ensure_layout(target)
    writer = BlobWriter(target, large.digest)
    writer.write(blob_path(registry.layout, large.digest).read_bytes()[:123_456])
    writer.close()
    await _pull([registry], target)
    assert [r.range_start for r in registry.blob_requests if str(large.digest) in r.target] == [123_456]
    assert _held(target) == _digests(image, AMD)


async def test_a_wrong_or_too_long_leftover_of_an_earlier_pull_does_not_fail_this_one(
    registry: Registry, image: MadeImage, target: Path
) -> None:
    ensure_layout(target)
    for blob, size in zip(image.blobs[AMD], (10, 100, 1_000_000), strict=True):
        writer = BlobWriter(target, blob.digest)
        writer.write(bytes(size))
        writer.close()
    await _pull([registry], target)
    assert _held(target) == _digests(image, AMD)


async def test_a_host_that_ignores_ranges_still_completes_a_blob(
    registry: Registry, image: MadeImage, target: Path
) -> None:
    def whole_again(request: Request, answer: Answer) -> Answer:
        if not request.range_start:
            return cut_after(100_000)(request, answer)
        digest = Digest.parse(request.target.partition("?")[0].rpartition("/")[2])
        content = blob_path(registry.layout, digest).read_bytes()
        return Answer(200, content, len(content))

    registry.fault = whole_again
    await _pull([registry], target)
    assert _held(target) == _digests(image, AMD)


async def test_a_partial_answer_from_another_offset_is_not_taken(
    registry: Registry, image: MadeImage, target: Path
) -> None:
    def other_offset(request: Request, answer: Answer) -> Answer:
        if request.range_start:
            headers = {**answer.headers, "Content-Range": f"bytes 7-{6 + len(answer.body)}/300000"}
            return Answer(206, bytes(len(answer.body)), answer.length, headers)
        return cut_after(100_000)(request, answer)

    mirror = Registry(registry.layout, fault=other_offset)
    await _pull([mirror, registry], target)
    assert _held(target) == _digests(image, AMD)


async def test_no_more_is_written_than_the_manifest_says(registry: Registry, image: MadeImage, target: Path) -> None:
    registry.fault = too_long
    result = await _pull([registry], target)
    assert result.bytes_by_source == {"upstream": image.pulled_bytes(AMD)}
    assert _held(target) == _digests(image, AMD)


async def test_bytes_are_taken_as_they_are_even_where_a_proxy_would_compress(
    registry: Registry, image: MadeImage, target: Path
) -> None:
    registry.fault = compressed_if_allowed
    await _pull([registry], target)
    assert _held(target) == _digests(image, AMD)


async def test_wrong_bytes_end_the_pull_and_leave_no_blob_behind(
    registry: Registry, image: MadeImage, target: Path
) -> None:
    registry.fault = wrong_bytes
    with pytest.raises(BaseExceptionGroup) as failed:
        await _pull([registry], target)
    assert failed.group_contains(StafettError, match="do not match the digest")
    assert _held(target) == set()
    assert read_images(target)[0] == ()
    registry.fault = lambda request, answer: answer
    await _pull([registry], target)
    assert _held(target) == _digests(image, AMD), "the next try starts clean"


async def test_a_blob_that_nobody_has_names_each_host_and_its_answer(registry: Registry, target: Path) -> None:
    registry.fault = absent
    with pytest.raises(BaseExceptionGroup) as failed:
        await _pull([registry], target)
    assert failed.group_contains(BlobUnknown, match=f"{registry.url}: status 404")


async def test_layers_with_equal_bytes_are_fetched_once(tmp_path: Path, target: Path) -> None:
    origin = tmp_path / "twins"
    ensure_layout(origin)
    layer = _add(origin, bytes(range(256)) * 4096)
    config = _add(origin, b"{}")
    entries = [
        {"mediaType": media_type, "digest": str(layer), "size": 256 * 4096}
        for media_type in (oci.OCI_LAYER_GZIP, "application/vnd.oci.image.layer.v1.tar")
    ]
    document = {
        "schemaVersion": 2,
        "mediaType": oci.OCI_MANIFEST,
        "config": {"mediaType": oci.OCI_CONFIG, "digest": str(config), "size": 2},
        "layers": entries,
    }
    content = json.dumps(document).encode()
    manifest = _add(origin, content)
    add_image(origin, NAME, Descriptor(oci.OCI_MANIFEST, manifest, len(content)))
    registry = Registry(origin)
    await _pull([registry], target)
    assert _held(target) == {layer, config, manifest}
    assert len(registry.blob_requests) == 2


async def test_the_registry_is_named_to_mirrors_and_not_to_itself(registry: Registry, target: Path) -> None:
    async with running(registry):
        own = f"127.0.0.1:{registry.port}"
        await _pull_from([registry.url], target, image=f"{own}/lib/app:1")
        assert not any("ns=" in request.target for request in registry.requests)
        registry.requests.clear()
        await _pull_from([registry.url], target, image=NAME)
        assert all(request.target.endswith("?ns=reg.test") for request in registry.requests)


@pytest.mark.parametrize("url", ["", "garbage", "ftp://127.0.0.1", "http://", "http://[::1", "http://127.0.0.1:99999"])
async def test_a_malformed_url_is_refused_wherever_it_stands(registry: Registry, target: Path, url: str) -> None:
    with pytest.raises(RequestInvalid, match="--via"):
        await _pull([registry], target, after=[url])
    assert registry.requests == []


def _add(layout: Path, content: bytes) -> Digest:
    writer = BlobWriter(layout, Digest.of(content))
    writer.write(content)
    writer.commit()
    return Digest.of(content)


def _held(layout: Path) -> set[Digest]:
    """Digests of what the files hold, not of what they are called."""
    return {Digest.of(path.read_bytes()) for path in (layout / "blobs" / "sha256").iterdir()}


def _digests(image: MadeImage, platform: str) -> set[Digest]:
    return {part.digest for part in (image.index, image.manifests[platform], *image.blobs[platform])}


async def _pull(
    registries: Sequence[Registry],
    target: Path,
    *,
    platform: str | None = AMD,
    before: Sequence[str] = (),
    after: Sequence[str] = (),
) -> Pulled:
    async with AsyncExitStack() as stack:
        for registry in registries:
            await stack.enter_async_context(running(registry))
        hosts = [*before, *(registry.url for registry in registries), *after]
        return await _pull_from(hosts, target, platform=platform)


async def _pull_from(hosts: Sequence[str], target: Path, *, image: str = NAME, platform: str | None = AMD) -> Pulled:
    return await pull(
        image, hosts, target, platform=platform, announce=lambda blobs: None, progress=lambda blob, size: None
    )
