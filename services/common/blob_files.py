"""Blob files on disk, laid out alike by containerd's content store and by an OCI image layout: blobs/sha256/<hex>.

Blobs are immutable once they have that name, and may vanish at any time; an open file stays readable after that.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from concurrent.futures import Executor
from pathlib import Path

from stafett.common.blob_codec import CHUNK_BYTES
from stafett.common.digest import Digest
from stafett.common.errors import BlobUnknown


def blob_path(root: Path, digest: Digest) -> Path:
    """Tell where the blob lies below a content root or layout directory."""
    return root / "blobs" / "sha256" / digest.hex


class BlobFile:
    """An open blob file; reads run in `executor`, as a cold disk blocks."""

    def __init__(self, fd: int, size_bytes: int, executor: Executor) -> None:
        self._fd = fd
        self.size_bytes = size_bytes
        self._executor = executor

    @classmethod
    def open(cls, root: Path, digest: Digest, executor: Executor) -> BlobFile:
        """Open the blob below root.

        Raises:
            BlobUnknown: if it is not there. Other OSErrors (permissions, disk) pass.
        """
        try:
            fd = os.open(blob_path(root, digest), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError as error:
            raise BlobUnknown(digest) from error
        return cls(fd, os.fstat(fd).st_size, executor)

    async def chunks(self, offset: int, length: int) -> AsyncIterator[bytes]:
        """Yield `length` bytes from `offset` in pieces of at most 1 MiB; fewer if the file ends before."""
        loop = asyncio.get_running_loop()
        end = offset + length
        while offset < end:
            wanted = min(CHUNK_BYTES, end - offset)
            chunk = await loop.run_in_executor(self._executor, os.pread, self._fd, wanted, offset)
            if not chunk:
                return
            yield chunk
            offset += len(chunk)

    def close(self) -> None:
        """Close the file; harmless when done twice."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
