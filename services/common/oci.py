"""The parts of the OCI image spec and of Docker's image format that Stafett reads.

Manifests and indexes are parsed leniently (unknown fields and media types pass) but never trusted: the digest of the
bytes is checked elsewhere before anything is served.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from stafett.common.digest import Digest
from stafett.common.errors import DigestInvalid, ManifestInvalid

OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER_GZIP = "application/vnd.oci.image.layer.v1.tar+gzip"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"

MANIFEST_MAX_BYTES = 4 * 1024 * 1024
"""Largest manifest or index that is read: the distribution spec asks registries to accept at least this."""


@dataclass(frozen=True, slots=True)
class Descriptor:
    """A pointer to content; `platform` is "os/architecture[/variant]" on the manifests of an index."""

    media_type: str
    digest: Digest
    size_bytes: int
    platform: str = ""


@dataclass(frozen=True, slots=True)
class StoredImage:
    """An image record: its name as the store has it, what it points to, when it last changed (Unix ms)."""

    name: str
    target: Descriptor
    updated_at_unix_ms: int


@dataclass(frozen=True, slots=True)
class Manifest:
    """One platform's image: its config and layers."""

    media_type: str
    config: Descriptor
    layers: tuple[Descriptor, ...]

    @property
    def children(self) -> tuple[Descriptor, ...]:
        """All blobs that the manifest points to."""
        return (self.config, *self.layers)


@dataclass(frozen=True, slots=True)
class Index:
    """A list of manifests."""

    media_type: str
    manifests: tuple[Descriptor, ...]

    @property
    def children(self) -> tuple[Descriptor, ...]:
        """All manifests that the index points to."""
        return self.manifests


def parse_manifest(content: bytes) -> Manifest | Index:
    """Parse a manifest or an index, OCI or Docker v2.

    The media type is the document's own `mediaType`, or follows from its shape where it has none.

    Raises:
        ManifestInvalid: if it is neither, or larger than `MANIFEST_MAX_BYTES`.
    """
    document = _load_object(content)
    media_type = document.get("mediaType", "")
    if not isinstance(media_type, str):
        raise ManifestInvalid("mediaType is not a text")
    if "manifests" in document:
        return Index(media_type or OCI_INDEX, _descriptors(document["manifests"], "manifests"))
    if "layers" in document and "config" in document:
        config = _descriptor(document["config"], "config")
        return Manifest(media_type or OCI_MANIFEST, config, _descriptors(document["layers"], "layers"))
    raise ManifestInvalid('it has neither "manifests" nor "config" and "layers"')


def _load_object(content: bytes) -> dict[str, object]:
    if len(content) > MANIFEST_MAX_BYTES:
        raise ManifestInvalid(f"it has {len(content)} bytes, more than {MANIFEST_MAX_BYTES}")
    try:
        document = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ManifestInvalid("it is not JSON") from error
    if not isinstance(document, dict):
        raise ManifestInvalid("it is not a JSON object")
    return document


def _descriptors(value: object, where: str) -> tuple[Descriptor, ...]:
    if value is None:
        return ()
    if not isinstance(value, list):
        raise ManifestInvalid(f"{where} is not a list")
    return tuple(_descriptor(item, where) for item in value)


def _descriptor(value: object, where: str) -> Descriptor:
    if not isinstance(value, dict):
        raise ManifestInvalid(f"{where} holds something that is not a descriptor")
    media_type, digest, size = value.get("mediaType", ""), value.get("digest"), value.get("size")
    if not isinstance(media_type, str) or not isinstance(digest, str):
        raise ManifestInvalid(f"{where} holds a descriptor without digest or with a wrong media type")
    if not isinstance(size, int) or isinstance(size, bool) or size < 0:
        raise ManifestInvalid(f"{where} holds a descriptor without a valid size")
    try:
        parsed = Digest.parse(digest)
    except DigestInvalid as error:
        raise ManifestInvalid(str(error)) from error
    return Descriptor(media_type, parsed, size, _platform(value.get("platform")))


def _platform(value: object) -> str:
    if not isinstance(value, dict):
        return ""
    parts = (value.get("os"), value.get("architecture"), value.get("variant"))
    return "/".join(part for part in parts if isinstance(part, str) and part)
