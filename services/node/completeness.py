"""Whether an image is all there. Pure.

Complete means: one platform's manifest with its config and all layers. The other platforms of an index are normally
absent, though containerd's labels name them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from stafett.common.digest import Digest
from stafett.common.oci import Index, Manifest

Documents = Callable[[Digest], Manifest | Index | None]
"""Gives a parsed manifest or index that the store has, None if it has not."""


@dataclass(frozen=True, slots=True)
class Extent:
    """What a store has of an image: bytes, whether a platform is complete, and whether all layers of all are gone."""

    content_bytes: int
    complete: bool
    layers_discarded: bool


def extent_of(target: Digest, blobs: Mapping[Digest, int], documents: Documents) -> Extent:
    """Walk an image from its target over index and manifests to config and layers."""
    root = documents(target)
    manifests = [root] if isinstance(root, Manifest) else []
    present = {target} & blobs.keys()
    if isinstance(root, Index):
        for child in root.manifests:
            document = documents(child.digest)
            if isinstance(document, Manifest):
                manifests.append(document)
                present.add(child.digest)
    complete = False
    layers = False
    for manifest in manifests:
        here = {part.digest for part in manifest.children if part.digest in blobs}
        present |= here
        complete = complete or all(part.digest in here for part in manifest.children)
        layers = layers or any(part.digest in here for part in manifest.layers)
    named = any(manifest.layers for manifest in manifests)
    return Extent(sum(blobs.get(digest, 0) for digest in present), complete, named and not layers)
