"""An OCI image layout directory as a content store: for demos, laptops and tests."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncGenerator, Callable, Collection, Mapping, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import TypeVar

import structlog

from stafett.common.blob_files import BlobFile, blob_path
from stafett.common.digest import Digest
from stafett.common.errors import DigestInvalid, Unavailable
from stafett.common.oci import StoredImage
from stafett.common.oci_layout import expected_size, read_images
from stafett.node.ports import BlobReader, Ingest

log = structlog.get_logger()

POLL_SECONDS = 0.5
T = TypeVar("T")


class LayoutStore:
    """Adapter of `ports.ContentStore`. What is damaged is skipped, and reported when it is first seen."""

    def __init__(self, root: Path, disk: Executor) -> None:
        self._root = root
        self._disk = disk
        self._reported: set[str] = set()

    async def list_blobs(self) -> Mapping[Digest, int]:
        """See `ports.ContentStore`."""
        return await self._on_disk(self._list_blobs)

    async def list_images(self) -> Sequence[StoredImage]:
        """See `ports.ContentStore`."""
        return await self._on_disk(self._list_images)

    async def changes(self) -> AsyncGenerator[None, None]:
        """See `ports.ContentStore`; looks at modification times twice a second."""
        seen: tuple[int, ...] = ()
        while True:
            now = await self._on_disk(self._stamps)
            if now != seen:
                seen = now
                yield
            await asyncio.sleep(POLL_SECONDS)

    async def size_of(self, digest: Digest) -> int | None:
        """See `ports.ContentStore`."""
        try:
            return blob_path(self._root, digest).stat().st_size
        except OSError:
            return None

    async def open(self, digest: Digest) -> BlobReader:
        """See `ports.ContentStore`."""
        return BlobFile.open(self._root, digest, self._disk)

    async def ingests(self, digest: Digest | None = None) -> Sequence[Ingest]:
        """See `ports.ContentStore`."""
        return [each for each in await self._on_disk(self._list_ingests) if digest in (None, each.digest)]

    async def abort(self, ingest: Ingest) -> None:
        """See `ports.ContentStore`."""
        try:
            await self._on_disk(lambda: ingest.data.unlink(missing_ok=True))
        except OSError as error:
            raise Unavailable(f"layout {self._root}", error.strerror or "unwritable") from error

    async def condemn(self, digest: Digest) -> None:
        """See `ports.ContentStore`; a layout has no place for such a note."""

    async def condemned(self) -> Collection[Digest]:
        """See `ports.ContentStore`."""
        return ()

    async def close(self) -> None:
        """See `ports.ContentStore`."""

    async def _on_disk(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._disk, work)

    def _stamps(self) -> tuple[int, ...]:
        paths = (self._root / "index.json", self._root / "blobs" / "sha256")
        return tuple(_modified_at(path) for path in paths)

    def _list_blobs(self) -> dict[Digest, int]:
        found: dict[Digest, int] = {}
        try:
            with os.scandir(self._root / "blobs" / "sha256") as entries:
                for entry in entries:
                    self._add_entry(entry, found)
        except OSError as error:
            raise Unavailable(f"layout {self._root}", error.strerror or "unreadable") from error
        return found

    def _add_entry(self, entry: os.DirEntry[str], found: dict[Digest, int]) -> None:
        try:
            found[Digest(entry.name)] = entry.stat().st_size
        except DigestInvalid:
            self._report(f"{entry.name[:80]} in blobs/sha256 is not named by a digest")
        except OSError as error:
            self._report(f"{entry.name} cannot be read: {error.strerror}")

    def _list_ingests(self) -> list[Ingest]:
        found: list[Ingest] = []
        for path in _files_in(self._root / "ingest"):
            with contextlib.suppress(DigestInvalid):
                digest = Digest(path.name)
                blob = blob_path(self._root, digest)
                found.append(Ingest(digest, path, blob, path.name, expected_size(path)))
        return found

    def _list_images(self) -> Sequence[StoredImage]:
        try:
            images, problems = read_images(self._root)
        except (OSError, ValueError) as error:
            images, problems = (), (f"index.json cannot be read: {error}",)
        for problem in problems:
            self._report(problem)
        return images

    def _report(self, problem: str) -> None:
        if problem not in self._reported:
            self._reported.add(problem)
            log.warning("layout_damaged", layout=str(self._root), problem=problem)


def _files_in(folder: Path) -> list[Path]:
    """List a folder, which may not be there. Raises Unavailable: if it cannot be read."""
    try:
        return list(folder.iterdir())
    except FileNotFoundError:
        return []
    except OSError as error:
        raise Unavailable(f"folder {folder.name}", error.strerror or "unreadable") from error


def _modified_at(path: Path) -> int:
    """Time of the last change in nanoseconds; 0 for what is not there (any more)."""
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0
