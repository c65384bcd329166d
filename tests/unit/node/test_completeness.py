"""When an image counts as all there."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from stafett.common.digest import Digest
from stafett.common.oci import (
    DOCKER_LIST,
    DOCKER_MANIFEST,
    OCI_CONFIG,
    OCI_INDEX,
    OCI_LAYER_GZIP,
    OCI_MANIFEST,
    Descriptor,
    Index,
    Manifest,
)
from stafett.node.completeness import Extent, extent_of

SIZES = {name: 10**number for number, name in enumerate(("index", "amd", "amd-config", "l1", "l2", "arm"))}


def digest(name: str) -> Digest:
    return Digest.of(name.encode())


def pointer(name: str, media_type: str) -> Descriptor:
    return Descriptor(media_type, digest(name), SIZES.get(name, 7))


def manifest(config: str, layers: Iterable[str], media_type: str = OCI_MANIFEST) -> Manifest:
    return Manifest(media_type, pointer(config, OCI_CONFIG), tuple(pointer(layer, OCI_LAYER_GZIP) for layer in layers))


def extent(target: str, held: Iterable[str], *, kinds: tuple[str, str] = (OCI_INDEX, OCI_MANIFEST)) -> Extent:
    """An index of amd64 (two layers) and arm64 (one), of which the store has the named blobs."""
    index_type, manifest_type = kinds
    documents: dict[Digest, Manifest | Index] = {
        digest("index"): Index(index_type, (pointer("amd", manifest_type), pointer("arm", manifest_type))),
        digest("amd"): manifest("amd-config", ("l1", "l2"), manifest_type),
        digest("arm"): manifest("arm-config", ("l3",), manifest_type),
    }
    blobs = {digest(name): SIZES.get(name, 7) for name in held}
    return extent_of(digest(target), blobs, lambda asked: documents.get(asked) if asked in blobs else None)


@pytest.mark.parametrize("kinds", [(OCI_INDEX, OCI_MANIFEST), (DOCKER_LIST, DOCKER_MANIFEST)])
def test_one_complete_platform_is_enough(kinds: tuple[str, str]) -> None:
    held = ["index", "amd", "amd-config", "l1", "l2"]
    assert extent("index", held, kinds=kinds) == Extent(11111, complete=True, layers_discarded=False)


def test_manifest_and_config_of_a_further_platform_change_nothing() -> None:
    held = ["index", "amd", "amd-config", "l1", "l2", "arm", "arm-config"]
    found = extent("index", held)
    assert found.complete
    assert found.content_bytes == 11111 + 10**5 + 7


@pytest.mark.parametrize("missing", ["amd", "amd-config", "l1", "l2"])
def test_an_image_that_misses_a_part_is_incomplete(missing: str) -> None:
    held = {"index", "amd", "amd-config", "l1", "l2"} - {missing}
    assert not extent("index", held).complete


def test_parts_of_different_platforms_do_not_make_one_whole() -> None:
    assert not extent("index", ["index", "amd", "amd-config", "l1", "arm", "l3"]).complete


def test_an_image_without_index_is_its_manifest() -> None:
    assert extent("amd", ["amd", "amd-config", "l1", "l2"]) == Extent(11110, True, False)


def test_layers_that_were_dropped_after_unpacking_are_noticed() -> None:
    assert extent("index", ["index", "amd", "amd-config"]) == Extent(111, complete=False, layers_discarded=True)
    assert not extent("index", ["index", "amd", "amd-config", "l2"]).layers_discarded


def test_an_image_without_layers_is_complete_and_has_discarded_none() -> None:
    document = manifest("amd-config", ())
    blobs = {digest("empty"): 3, digest("amd-config"): 4}
    assert extent_of(digest("empty"), blobs, {digest("empty"): document}.get) == Extent(7, True, False)


def test_a_layer_used_twice_counts_once() -> None:
    document = manifest("amd-config", ("l1", "l1"))
    blobs = {digest("twice"): 1, digest("amd-config"): 10, digest("l1"): 100}
    assert extent_of(digest("twice"), blobs, {digest("twice"): document}.get) == Extent(111, True, False)


def test_a_target_that_is_no_document_is_incomplete() -> None:
    assert extent_of(digest("x"), {digest("x"): 5}, lambda _: None) == Extent(5, complete=False, layers_discarded=False)
