"""A disk that fails, and a store that refuses, cost what they must and never the process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from stafett.common.digest import Digest
from stafett.common.errors import Unavailable
from stafett.node import spoilt
from stafett.node.containerd_store import ContainerdStore
from stafett.node.layout_store import LayoutStore
from stafett.node.ports import ContentStore, Ingest
from stafett.node.spoilt import REFUSALS_MAX, SpoiltIngests

D, OTHER = Digest.of(b"spoilt"), Digest.of(b"other")
Make = Callable[[Path, Executor], ContentStore]


def containerd_store(root: Path, disk: Executor) -> ContentStore:
    return ContainerdStore(root.parent / "no-socket", (), root, disk)


@pytest.fixture
def disk() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as threads:
        yield threads


@pytest.mark.parametrize("make", [LayoutStore, containerd_store])
async def test_a_store_whose_disk_fails_is_away(make: Make, tmp_path: Path, disk: Executor) -> None:
    root = tmp_path / ("x" * 300)  # each access fails with an OSError that does not say "not found"
    with pytest.raises(OSError, match="name too long"):
        root.exists()
    store = make(root, disk)
    with pytest.raises(Unavailable):
        await store.ingests()
    assert await store.size_of(D) is None
    await store.close()


class Store:
    """A store with downloads that it refuses to drop, or drops."""

    def __init__(self, folder: Path, *refused: Digest) -> None:
        self._folder = folder
        self._refused = refused
        self.present = [D, OTHER]
        self.aborts: list[Digest] = []
        self.looks = 0
        for digest in self.present:
            (folder / digest.hex).touch()

    async def ingests(self, digest: Digest | None = None) -> Sequence[Ingest]:
        self.looks += 1
        return [Ingest(each, self._folder / each.hex, Path("/nowhere"), each.hex) for each in self.present]

    async def abort(self, ingest: Ingest) -> None:
        self.aborts.append(ingest.digest)
        if ingest.digest in self._refused:
            raise Unavailable("containerd", "UNKNOWN: in use")
        ingest.data.unlink()
        self.present.remove(ingest.digest)


@asynccontextmanager
async def running(store: Store) -> AsyncIterator[SpoiltIngests]:
    ingests = SpoiltIngests(store)  # type: ignore[arg-type] # the rest of a store is not called
    work = asyncio.create_task(ingests.run())
    try:
        yield ingests
        assert not work.done(), work.exception()
    finally:
        work.cancel()
        await asyncio.wait([work])


@pytest.fixture
def quick_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spoilt, "LOOK_SECONDS", 0.0)


@pytest.mark.usefixtures("quick_looks")
async def test_a_download_that_the_store_refuses_to_drop_is_given_up_and_holds_nobody_up(tmp_path: Path) -> None:
    store = Store(tmp_path, D)
    async with running(store) as ingests, asyncio.timeout(10):
        for digest in (D, OTHER):
            ingests.discard(digest)
        while store.aborts.count(D) <= REFUSALS_MAX:  # noqa: ASYNC110
            await asyncio.sleep(0)
        for _ in range(1_000):
            await asyncio.sleep(0)
        assert store.aborts.count(D) == REFUSALS_MAX + 1
        assert store.present == [D]
        ingests.discard(D)  # said again, it is tried again
        while store.aborts.count(D) == REFUSALS_MAX + 1:  # noqa: ASYNC110
            await asyncio.sleep(0)
