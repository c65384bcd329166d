"""Makes images with real tar layers in an OCI layout, the same bytes for the same arguments."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import random
import tarfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from stafett.common import oci, oci_layout
from stafett.common.blob_files import blob_path
from stafett.common.digest import Digest
from stafett.common.oci import Descriptor

DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar.gzip"


@dataclass(frozen=True)
class Format:
    """Media types of an image, and how its layers are compressed."""

    index: str
    manifest: str
    config: str
    layer: str
    compress: Callable[[bytes], bytes]


def _stored_gzip(tar: bytes) -> bytes:
    """Wrap in gzip without compressing: random bytes do not shrink, and a demo should not wait for the attempt."""
    return gzip.compress(tar, compresslevel=0, mtime=0)


OCI = Format(oci.OCI_INDEX, oci.OCI_MANIFEST, oci.OCI_CONFIG, oci.OCI_LAYER_GZIP, _stored_gzip)
DOCKER = Format(oci.DOCKER_LIST, oci.DOCKER_MANIFEST, DOCKER_CONFIG, DOCKER_LAYER, _stored_gzip)


@dataclass(frozen=True)
class MadeImage:
    """What was made: the index, and each platform's manifest."""

    name: str
    index: Descriptor
    manifests: Mapping[str, Descriptor]
    blobs: Mapping[str, tuple[Descriptor, ...]]
    """Config and layers by platform."""

    def pulled_bytes(self, platform: str) -> int:
        """Bytes that a pull of one platform moves: index, manifest, config, layers."""
        parts = (self.index, self.manifests[platform], *self.blobs[platform])
        return sum(part.size_bytes for part in {part.digest: part for part in parts}.values())


def make_image(
    root: Path,
    name: str,
    layers: Mapping[str, Sequence[int]],
    *,
    image_format: Format = OCI,
    seed: int = 0,
) -> MadeImage:
    """Make an image with an index and one manifest for each platform.

    Args:
        root: layout directory, made if absent.
        name: full image name, "registry/repository:tag".
        layers: platform ("os/arch") to the sizes of its layers in bytes (of the one file inside each).
        seed: another seed gives other bytes.
    """
    oci_layout.ensure_layout(root)
    manifests: dict[str, Descriptor] = {}
    blobs: dict[str, tuple[Descriptor, ...]] = {}
    for platform, sizes in layers.items():
        manifests[platform], blobs[platform] = _make_platform(root, platform, sizes, image_format, seed)
    entries = []
    for platform, manifest in manifests.items():
        system, _, architecture = platform.partition("/")
        entries.append({**_entry(manifest), "platform": {"os": system, "architecture": architecture}})
    document = {"schemaVersion": 2, "mediaType": image_format.index, "manifests": entries}
    index = _add_json(root, image_format.index, document)
    oci_layout.add_image(root, name, index)
    return MadeImage(name, index, manifests, blobs)


def make_layer(path: str, size_bytes: int, seed: str) -> bytes:
    """Make an uncompressed tar with one file of random bytes."""
    content = random.Random(seed).randbytes(size_bytes)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        member = tarfile.TarInfo(path)
        member.size = size_bytes
        member.mode = 0o644
        tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def _make_platform(
    root: Path, platform: str, sizes: Sequence[int], image_format: Format, seed: int
) -> tuple[Descriptor, tuple[Descriptor, ...]]:
    layers: list[Descriptor] = []
    diff_ids: list[str] = []
    for number, size in enumerate(sizes):
        tar = make_layer(f"layer-{number}.bin", size, f"{seed}/{platform}/{number}")
        diff_ids.append(f"sha256:{hashlib.sha256(tar).hexdigest()}")
        layers.append(_add_blob(root, image_format.layer, image_format.compress(tar)))
    system, _, architecture = platform.partition("/")
    config = _add_json(
        root,
        image_format.config,
        {
            "os": system,
            "architecture": architecture,
            "config": {"Cmd": ["/bin/true"]},
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
            "history": [{"created_by": f"layer {number}"} for number in range(len(layers))],
        },
    )
    manifest = _add_json(
        root,
        image_format.manifest,
        {
            "schemaVersion": 2,
            "mediaType": image_format.manifest,
            "config": _entry(config),
            "layers": [_entry(layer) for layer in layers],
        },
    )
    return manifest, (config, *layers)


def _entry(descriptor: Descriptor) -> dict[str, object]:
    return {
        "mediaType": descriptor.media_type,
        "digest": str(descriptor.digest),
        "size": descriptor.size_bytes,
    }


def _add_json(root: Path, media_type: str, document: object) -> Descriptor:
    return _add_blob(root, media_type, json.dumps(document, sort_keys=True).encode())


def _add_blob(root: Path, media_type: str, content: bytes) -> Descriptor:
    digest = Digest.of(content)
    if not blob_path(root, digest).exists():
        writer = oci_layout.BlobWriter(root, digest)
        if writer.offset < len(content):
            writer.write(content[writer.offset :])
        writer.commit()
    return Descriptor(media_type, digest, len(content))
