"""Manifests, indexes and layouts, whole and damaged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from stafett.common import oci, oci_layout
from stafett.common.digest import Digest
from stafett.common.errors import CorruptContent, ManifestInvalid, StartupFailed
from stafett.common.oci import Descriptor, Index, Manifest, parse_manifest

A, B = Digest.of(b"a"), Digest.of(b"b")
CONFIG = {"mediaType": oci.OCI_CONFIG, "digest": str(A), "size": 1}
LAYER = {"mediaType": oci.OCI_LAYER_GZIP, "digest": str(B), "size": 2}


def test_a_manifest_names_config_and_layers() -> None:
    parsed = parse_manifest(
        json.dumps({"mediaType": oci.DOCKER_MANIFEST, "config": CONFIG, "layers": [LAYER]}).encode()
    )
    assert isinstance(parsed, Manifest)
    assert parsed.media_type == oci.DOCKER_MANIFEST
    assert [child.digest for child in parsed.children] == [A, B]


def test_an_index_names_manifests_with_their_platforms() -> None:
    entry = {**LAYER, "platform": {"os": "linux", "architecture": "arm", "variant": "v7"}}
    parsed = parse_manifest(json.dumps({"manifests": [entry]}).encode())
    assert isinstance(parsed, Index)
    assert parsed.media_type == oci.OCI_INDEX, "follows from its shape"
    assert parsed.manifests[0].platform == "linux/arm/v7"


@pytest.mark.parametrize(
    "document",
    [
        b"",
        b"[]",
        b"{}",
        b"\xff",
        b"[" * 100_000,
        b'{"manifests": 1}',
        b'{"manifests": [1]}',
        b'{"manifests": [{"digest": "x", "size": 1}]}',
        b'{"config": {}, "layers": []}',
        json.dumps({"config": {**CONFIG, "size": -1}, "layers": []}).encode(),
        json.dumps({"config": {**CONFIG, "size": True}, "layers": []}).encode(),
        json.dumps({"mediaType": 1, "manifests": []}).encode(),
        b'{"manifests": []}' + b" " * oci.MANIFEST_MAX_BYTES,
    ],
)
def test_what_is_no_manifest_is_refused(document: bytes) -> None:
    with pytest.raises(ManifestInvalid):
        parse_manifest(document)


def test_a_blob_that_was_cut_is_continued(tmp_path: Path) -> None:
    oci_layout.ensure_layout(tmp_path)
    content = b"0123456789" * 1000
    writer = oci_layout.BlobWriter(tmp_path, Digest.of(content))
    writer.write(content[:4321])
    writer.close()
    again = oci_layout.BlobWriter(tmp_path, Digest.of(content))
    assert again.offset == 4321
    again.write(content[4321:])
    assert again.commit().read_bytes() == content


def test_wrong_bytes_are_never_published(tmp_path: Path) -> None:
    oci_layout.ensure_layout(tmp_path)
    writer = oci_layout.BlobWriter(tmp_path, A)
    writer.write(b"not a")
    with pytest.raises(CorruptContent):
        writer.commit()
    assert list((tmp_path / "blobs" / "sha256").iterdir()) == []
    again = oci_layout.BlobWriter(tmp_path, A)
    assert again.offset == 0
    again.close()


def test_a_name_moves_to_its_new_target(tmp_path: Path) -> None:
    oci_layout.ensure_layout(tmp_path)
    for digest in (A, B):
        oci_layout.add_image(tmp_path, "reg.test/a:1", Descriptor(oci.OCI_INDEX, digest, 1))
    images, problems = oci_layout.read_images(tmp_path)
    assert [image.target.digest for image in images] == [B]
    assert problems == ()
    oci_layout.remove_image(tmp_path, "reg.test/a:1")
    assert oci_layout.read_images(tmp_path) == ((), ())


def test_damaged_entries_are_reported_and_the_others_read(tmp_path: Path) -> None:
    oci_layout.ensure_layout(tmp_path)
    oci_layout.add_image(tmp_path, "reg.test/a:1", Descriptor(oci.OCI_INDEX, A, 1))
    path = tmp_path / "index.json"
    document = json.loads(path.read_text())
    named = {"annotations": {oci_layout.REF_NAME: "reg.test/b:1"}}
    document["manifests"] += [{"digest": "x", "size": 1, **named}, {**named}, {"digest": str(B), "size": "big"}, 1]
    path.write_text(json.dumps(document))
    images, problems = oci_layout.read_images(tmp_path)
    assert [image.name for image in images] == ["reg.test/a:1"]
    assert len(problems) == 4


def test_a_folder_with_something_else_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").touch()
    with pytest.raises(StartupFailed):
        oci_layout.ensure_layout(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["photo.jpg"]
