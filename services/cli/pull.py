"""`stafett pull`: an image into an OCI layout directory, for demos, tests and debugging."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from stafett.cli.registry_client import Fetched, Progress, RegistryClient, Tally
from stafett.common import oci_layout
from stafett.common.blob_files import blob_path
from stafett.common.digest import Digest
from stafett.common.errors import CorruptContent, ManifestUnknown, StartupFailed
from stafett.common.oci import Descriptor, Index
from stafett.common.reference import Reference

PARALLEL_LAYERS = 3


@dataclass(frozen=True)
class Pulled:
    """Result of a pull."""

    image: str
    digest: Digest
    seconds: float
    bytes_by_source: Mapping[str, int]
    longest_gap_seconds: float
    trace_id: str
    """Where to find the pull among the traces; empty where no gateway makes any."""


async def pull(
    image: str,
    hosts: Sequence[str],
    layout: Path,
    *,
    platform: str | None,
    announce: Callable[[Sequence[Descriptor]], None],
    progress: Progress,
) -> Pulled:
    """Pull an image; what the layout has already is not fetched again, what is half there is continued.

    Args:
        image: reference by tag or digest.
        hosts: base URLs, tried in this order for each request.
        layout: layout directory, made if absent.
        platform: "os/arch", or None for all platforms of an index.
        announce: hears which blobs are about to be fetched.
        progress: hears of every piece.

    Raises:
        StafettError: if it cannot be pulled; what was received stays for the next try.
    """
    started_at = time.monotonic()
    reference = Reference.parse(image)
    _open_layout(layout)
    tally = Tally()
    async with RegistryClient(hosts, reference, tally) as client:
        top = await client.manifest(reference.manifest_reference)
        documents = [top, *await _platform_manifests(client, top, platform)]
        # By digest: two layers of equal bytes have one file, and one writer.
        blobs = {blob.digest: blob for document in documents for blob in _blobs(document)}
        missing = [blob for blob in blobs.values() if not blob_path(layout, blob.digest).exists()]
        announce(missing)
        slots = asyncio.Semaphore(PARALLEL_LAYERS)
        async with asyncio.TaskGroup() as group:
            for blob in missing:
                group.create_task(_fetch(client, blob, layout, slots, progress))
    for document in reversed(documents):
        _store(layout, document)
    name = reference.tagged_name if reference.tag else str(reference)
    oci_layout.add_image(layout, name, top.descriptor)
    return Pulled(
        name,
        top.descriptor.digest,
        time.monotonic() - started_at,
        dict(tally.bytes_by_source),
        tally.longest_gap_seconds,
        tally.trace_id,
    )


def _open_layout(layout: Path) -> None:
    """Refuse a layout that could not record the image, before anything is fetched."""
    oci_layout.ensure_layout(layout)
    try:
        _, problems = oci_layout.read_images(layout)
    except ValueError as error:
        raise StartupFailed(f"{layout}/index.json is damaged ({error}): name another directory") from error
    if problems:
        raise StartupFailed(f"{layout}: {problems[0]}: name another directory")


async def _platform_manifests(client: RegistryClient, top: Fetched, platform: str | None) -> list[Fetched]:
    if not isinstance(top.parsed, Index):
        return []
    wanted = _matching(top.parsed, platform)
    if not wanted:
        offered = ", ".join(child.platform for child in top.parsed.manifests)
        raise ManifestUnknown(f"for {platform}; the image has {offered}")
    return [await client.manifest(str(child.digest)) for child in wanted]


def _matching(index: Index, platform: str | None) -> Sequence[Descriptor]:
    """Manifests to pull; a platform without variant also finds the first one that has a variant."""
    if platform is None:
        return index.manifests
    exact = [child for child in index.manifests if child.platform == platform]
    return exact or [child for child in index.manifests if child.platform.startswith(f"{platform}/")][:1]


def _blobs(document: Fetched) -> Sequence[Descriptor]:
    return () if isinstance(document.parsed, Index) else document.parsed.children


async def _fetch(
    client: RegistryClient, blob: Descriptor, layout: Path, slots: asyncio.Semaphore, progress: Progress
) -> None:
    async with slots:
        while True:
            writer = oci_layout.BlobWriter(layout, blob.digest, blob.size_bytes)
            # What an earlier pull left can be wrong: that is no reason to fail, only to begin anew, once.
            continued = writer.offset > 0
            try:
                await client.blob(blob, writer, progress)
                writer.commit()
                return
            except CorruptContent:
                if not continued:
                    raise
            finally:
                writer.close()


def _store(layout: Path, document: Fetched) -> None:
    if blob_path(layout, document.descriptor.digest).exists():
        return
    writer = oci_layout.BlobWriter(layout, document.descriptor.digest)
    writer.write(document.content[writer.offset :])
    writer.commit()
