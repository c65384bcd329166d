"""Content sources of a host as tests use them: each can receive an image and lose a blob."""

from __future__ import annotations

import asyncio
import subprocess
import tarfile
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Protocol

from stafett.cli.local_cluster.containerd import Containerd
from stafett.cli.local_cluster.images import MadeImage, make_image
from stafett.common import oci_layout
from stafett.common.blob_files import blob_path
from stafett.common.digest import Digest
from stafett.node.containerd_store import ContainerdStore
from stafett.node.layout_store import LayoutStore
from stafett.node.ports import ContentStore

PLATFORM = "linux/amd64"
WITHIN_SECONDS = 30.0


async def eventually(condition: Callable[[], Awaitable[bool]]) -> None:
    """Wait until a condition holds; fail after a time that no working system needs."""
    async with asyncio.timeout(WITHIN_SECONDS):
        while not await condition():  # noqa: ASYNC110
            await asyncio.sleep(0.05)


async def becomes(check: Callable[[], bool]) -> None:
    """Wait until something that is known at once holds."""

    async def holds() -> bool:
        return check()

    await eventually(holds)


class Host(Protocol):
    """A place where content lies, and the store that reads it."""

    store: ContentStore

    async def receive(self, name: str, *sizes: int, seed: int = 0) -> MadeImage:
        """Let an image arrive as it would from a pull."""
        ...

    async def lose(self, digest: Digest) -> None:
        """Let one blob vanish."""
        ...

    def receiving(self, digest: Digest) -> AbstractContextManager[Callable[[bytes], object]]:
        """Start a download that never ends; what it gives takes the next bytes. Abandoned when left."""
        ...


class LayoutHost:
    """An OCI layout directory."""

    def __init__(self, root: Path, disk: ThreadPoolExecutor) -> None:
        oci_layout.ensure_layout(root)
        self.root = root
        self.store: ContentStore = LayoutStore(root, disk)

    async def receive(self, name: str, *sizes: int, seed: int = 0) -> MadeImage:
        return make_image(self.root, name, {PLATFORM: sizes}, seed=seed)

    async def lose(self, digest: Digest) -> None:
        blob_path(self.root, digest).unlink()

    @contextmanager
    def receiving(self, digest: Digest) -> Iterator[Callable[[bytes], object]]:
        writer = oci_layout.BlobWriter(self.root, digest)
        yield writer.write
        writer.close()


class ContainerdHost:
    """A private containerd, read through its files or through its API."""

    def __init__(self, containerd: Containerd, scratch: Path, disk: ThreadPoolExecutor, *, mounted: bool) -> None:
        self.containerd = containerd
        self._scratch = scratch
        root = containerd.content_root if mounted else None
        self.store: ContentStore = ContainerdStore(containerd.socket, (), root, disk)

    async def receive(self, name: str, *sizes: int, seed: int = 0) -> MadeImage:
        return await asyncio.to_thread(self._import, name, sizes, seed)

    async def lose(self, digest: Digest) -> None:
        await asyncio.to_thread(self._ctr, "content", "rm", str(digest))

    @contextmanager
    def receiving(self, digest: Digest) -> Iterator[Callable[[bytes], object]]:
        command = self.containerd.ctr_command("content", "ingest", f"layer-{digest}")
        with subprocess.Popen(command, stdin=subprocess.PIPE, bufsize=0) as writer:
            assert writer.stdin is not None
            try:
                yield writer.stdin.write
            finally:
                writer.kill()

    def _import(self, name: str, sizes: tuple[int, ...], seed: int) -> MadeImage:
        layout = self._scratch / Digest.of(f"{name} {sizes} {seed}".encode()).hex[:16]
        image = make_image(layout, name, {PLATFORM: sizes}, seed=seed)
        archive = layout.with_suffix(".tar")
        with tarfile.open(archive, "w") as tar:
            for part in ("oci-layout", "index.json", "blobs"):
                tar.add(layout / part, part)
        self._ctr("images", "import", "--no-unpack", "--all-platforms", str(archive))
        return image

    def _ctr(self, *arguments: str) -> None:
        done = self.containerd.ctr(*arguments)
        assert done.returncode == 0, done.stderr
