"""Blobs that the host is still receiving: how much of them is there, and their bytes as these come.

containerd and the layout writer both receive into a file in order, and rename it when it is whole. A reader keeps the
file open across that; inotify wakes it. Given up: the file has no name any more. Begun again: it has become shorter.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from asyncinotify import Inotify, Mask, Watch

from stafett.common.blob_codec import CHUNK_BYTES, Waiting
from stafett.common.digest import Digest
from stafett.common.errors import BlobUnknown, Unavailable, WouldCircle
from stafett.common.relaying import Received
from stafett.node.ports import ContentStore, Ingest

WAITING_SECONDS = 0.25
"""Without new bytes a reader is told so this often."""
GATHER_SECONDS = 0.005
GATHER_BYTES = 256 * 1024
"""After less than so much a reader pauses, that frames do not get tiny: each costs its processor time at every hop."""
RECENT_SECONDS = 2.0
PATHS_MAX = 10_000
_EVENTS = Mask.MODIFY | Mask.ATTRIB | Mask.MOVE_SELF | Mask.DELETE_SELF


@dataclass
class _Watched:
    watch: Watch
    sleepers: set[asyncio.Event] = field(default_factory=set)


class Unfinished:
    """All downloads of the host. `run` must be running."""

    def __init__(self, store: ContentStore, disk: Executor) -> None:
        self._store = store
        self._disk = disk
        self._inotify = Inotify()
        self._watched: dict[Path, _Watched] = {}
        self._ancestors: OrderedDict[Digest, frozenset[str]] = OrderedDict()

    async def run(self) -> NoReturn:
        """Wake whoever sleeps on a file that has changed, for ever."""
        while True:
            event = await self._inotify.get()
            for watched in self._watched.values():
                if event.watch in (watched.watch, None):  # None: events were lost
                    for sleeper in watched.sleepers:
                        sleeper.set()

    def close(self) -> None:
        """Free the descriptor."""
        self._inotify.close()

    def note_ancestors(self, digest: Digest, ancestors: Sequence[str]) -> None:
        """Remember from whom the host gets a blob, directly and indirectly."""
        self._ancestors[digest] = frozenset(ancestors)
        self._ancestors.move_to_end(digest)
        while len(self._ancestors) > PATHS_MAX:
            self._ancestors.popitem(last=False)

    async def grown(self, digest: Digest, beyond_bytes: int, seconds: float) -> Received | None:
        """Wait until more than so many bytes are there, the download ends, or the time is up; tell what is there."""
        deadline = time.monotonic() + seconds
        while True:
            ingests = await self._ingests(digest)
            if not ingests:
                return None
            best = _liveliest(ingests)
            left = deadline - time.monotonic()
            if best[1].st_size > beyond_bytes or left <= 0:
                return Received(best[0].size_bytes, best[1].st_size, len(ingests))
            with self.woken_by(best[0].data) as woken, contextlib.suppress(TimeoutError, FileNotFoundError):
                if best[0].data.stat().st_size == best[1].st_size:
                    async with asyncio.timeout(min(left, WAITING_SECONDS)):
                        await woken.wait()

    async def open(self, digest: Digest, reader: str) -> UnfinishedBlob:
        """Open the download that is most alive.

        Raises:
            BlobUnknown: if there is none. WouldCircle: if the host gets it from the reader.
        """
        if reader in self._ancestors.get(digest, ()):
            raise WouldCircle(reader)
        ingests = await self._ingests(digest)
        if not ingests:
            raise BlobUnknown(digest)
        ingest, _ = _liveliest(ingests)
        try:
            return UnfinishedBlob(self, ingest, os.open(ingest.data, os.O_RDONLY | os.O_CLOEXEC), self._disk)
        except FileNotFoundError as error:
            raise BlobUnknown(digest) from error

    async def other(self, ingest: Ingest, path: Path, offset: int) -> Path | None:
        """Find another file than `path` that has more of a blob: the blob itself, or a download that lives.

        A dead one may have been left by anybody, with anything in it.
        """
        for each, status in await self._ingests(ingest.digest):
            lives = time.time() - status.st_mtime < RECENT_SECONDS
            if each.data != path and status.st_size > offset and lives:
                return each.data
        return ingest.blob if ingest.blob != path and ingest.blob.exists() else None

    async def _ingests(self, digest: Digest) -> list[tuple[Ingest, os.stat_result]]:
        found = []
        for ingest in await self._store.ingests(digest):
            with contextlib.suppress(OSError):
                found.append((ingest, ingest.data.stat()))
        return found

    @contextlib.contextmanager
    def woken_by(self, path: Path) -> Iterator[asyncio.Event]:
        """Give an event that is set when the file changes, or is gone already."""
        woken = asyncio.Event()
        watched = self._watched.get(path)
        if watched is None:
            try:
                watched = self._watched[path] = _Watched(self._inotify.add_watch(path, _EVENTS))
            except OSError:
                woken.set()
                yield woken
                return
        watched.sleepers.add(woken)
        try:
            yield woken
        finally:
            watched.sleepers.discard(woken)
            if not watched.sleepers:
                del self._watched[path]
                with contextlib.suppress(OSError, ValueError, KeyError):
                    self._inotify.rm_watch(watched.watch)


class UnfinishedBlob:
    """An open download. Stays readable when it is committed."""

    def __init__(self, unfinished: Unfinished, ingest: Ingest, fd: int, disk: Executor) -> None:
        self._unfinished = unfinished
        self._ingest = ingest
        self._path = ingest.data
        self._fd = fd
        self._disk = disk
        self.size_bytes = ingest.size_bytes

    @property
    def available_bytes(self) -> int:
        """Bytes that can be read now."""
        return os.fstat(self._fd).st_size

    async def chunks(self, offset: int, length: int) -> AsyncGenerator[bytes | Waiting, None]:
        """Yield `length` bytes from `offset` as they come, in pieces of at most 1 MiB, and `Waiting` while none come.

        Goes on with another download of the blob, or with the blob itself, if that has what this one lacks. Ends early
        if the blob is committed and shorter.

        Raises:
            Unavailable: if the download is given up, or begun again.
        """
        end = offset + length
        while True:
            async for chunk in self._from_file(offset, end):
                offset += 0 if isinstance(chunk, Waiting) else len(chunk)
                yield chunk
            if offset >= end or not await self._change(offset):
                return

    async def _from_file(self, offset: int, end: int) -> AsyncGenerator[bytes | Waiting, None]:
        loop = asyncio.get_running_loop()
        grown_at, highest = time.monotonic(), 0
        with self._unfinished.woken_by(self._path) as woken:
            while offset < end:
                woken.clear()
                wanted = min(CHUNK_BYTES, end - offset)
                chunk = await loop.run_in_executor(self._disk, os.pread, self._fd, wanted, offset)
                if chunk:
                    yield chunk
                    offset, grown_at = offset + len(chunk), time.monotonic()
                    highest = max(highest, offset)
                    if len(chunk) < GATHER_BYTES:
                        await asyncio.sleep(GATHER_SECONDS)
                    continue
                highest = self._checked_size(highest)
                if self._committed and highest <= offset:
                    return
                try:
                    async with asyncio.timeout(WAITING_SECONDS):
                        await woken.wait()
                except TimeoutError:
                    yield Waiting(round((time.monotonic() - grown_at) * 1000), self.available_bytes)
                    if await self._unfinished.other(self._ingest, self._path, offset) is not None:
                        return

    async def _change(self, offset: int) -> bool:
        other = await self._unfinished.other(self._ingest, self._path, offset)
        if other is None:
            return False
        try:
            fd = os.open(other, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return True
        self.close()
        self._fd, self._path = fd, other
        return True

    def close(self) -> None:
        """Close the file; harmless when done twice."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _checked_size(self, highest: int) -> int:
        status = os.fstat(self._fd)
        if status.st_nlink == 0:
            raise Unavailable("download", "it was given up")
        if status.st_size < highest:
            raise Unavailable("download", "it was begun again")
        return status.st_size

    @property
    def _committed(self) -> bool:
        """Whether the file has another name now, so that nothing more will come."""
        if self._path == self._ingest.blob:
            return True
        try:
            return os.stat(self._path).st_ino != os.fstat(self._fd).st_ino
        except FileNotFoundError:
            return os.fstat(self._fd).st_nlink > 0


def _liveliest(ingests: Sequence[tuple[Ingest, os.stat_result]]) -> tuple[Ingest, os.stat_result]:
    """Choose the one that has most among those written a moment ago, else the one written last."""
    newest = max(status.st_mtime for _, status in ingests)
    recent = [each for each in ingests if newest - each[1].st_mtime < RECENT_SECONDS]
    return max(recent, key=lambda each: each[1].st_size)
