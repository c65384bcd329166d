"""A manifest comes from wherever it can be read, and is kept once."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import cast

import pytest

from stafett.common.cluster import Holder
from stafett.common.digest import Digest
from stafett.common.errors import BlobUnknown, Overloaded, Unavailable
from stafett.common.oci import OCI_MANIFEST
from stafett.gateway.byte_range import Span
from stafett.gateway.locator import Locator
from stafett.gateway.manifests import MEMORY_BYTES, Document, Manifests
from stafett.gateway.own_content import OwnContent
from stafett.gateway.seats import Seats
from stafett.gateway.sourcing import Sourcing
from tests.unit.gateway.cluster import FakeTracker, Script, holder
from tests.unit.gateway.test_relay import relay


def manifest(note: str = "") -> bytes:
    config = {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": str(Digest.of(b"{}")), "size": 2}
    document = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": []}
    return json.dumps({**document, "annotations": {"note": note}}).encode()


CONTENT = manifest()
D = Digest.of(CONTENT)


class OwnBlob:
    """A blob of the own host that gives `content`, then fails."""

    def __init__(self, content: bytes, error: Exception | None = None) -> None:
        self.size_bytes = len(CONTENT)
        self._content = content
        self._error = error

    async def pieces(self, span: Span) -> AsyncGenerator[memoryview, None]:
        if self._error is not None:
            raise self._error
        yield memoryview(self._content)

    def close(self) -> None:
        """Nothing to close."""


class Own:
    """The own host's content."""

    def __init__(self, blob: Callable[[], OwnBlob] | None = None) -> None:
        self._blob = blob

    async def open(self, digest: Digest) -> OwnBlob | None:
        await asyncio.sleep(0)
        return self._blob() if self._blob else None


@asynccontextmanager
async def manifests(own: Own, *documents: bytes) -> AsyncIterator[Manifests]:
    """Manifests of the own host, and of one peer."""
    holders: dict[Digest, tuple[Holder, ...]] = {
        Digest.of(each): (holder("n1", len(each)),) for each in (*documents, CONTENT)
    }
    async with relay({"n1": Script(CONTENT)}) as shared, asyncio.TaskGroup() as group:
        shared.locator = Locator(FakeTracker(holders), group)
        seats = cast(Seats, None)  # nothing is followed
        yield Manifests(cast(OwnContent, own), shared, Sourcing(shared, seats, follow=False))


@pytest.mark.parametrize(
    "error",
    [OSError(5, "Input/output error"), Unavailable("own node", "gone"), Overloaded("streams", 1), BlobUnknown(D)],
    ids=lambda error: type(error).__name__,
)
async def test_a_manifest_that_the_own_host_cannot_read_comes_from_a_peer(error: Exception) -> None:
    async with manifests(Own(lambda: OwnBlob(b"", error))) as each:
        assert (await each.get(D)).node_id == "n1"


async def test_an_own_copy_that_is_wrong_or_cut_short_comes_from_a_peer() -> None:
    for content in (CONTENT[:-1], CONTENT.replace(b"2", b"3", 1)):
        async with manifests(Own(lambda content=content: OwnBlob(content))) as each:  # type: ignore[misc]
            assert (await each.get(D)).node_id == "n1"


async def test_an_own_host_that_falls_silent_leaves_time_to_ask_a_peer() -> None:
    class Silent(OwnBlob):
        async def pieces(self, span: Span) -> AsyncGenerator[memoryview, None]:
            await asyncio.sleep(3600)
            yield memoryview(b"")

    async with manifests(Own(lambda: Silent(b""))) as each:
        assert (await each.get(D)).node_id == "n1"


async def test_a_manifest_that_many_ask_for_at_once_is_kept_and_counted_once() -> None:
    async with manifests(Own()) as each:
        await asyncio.gather(*(each.get(D) for _ in range(20)))
        assert each._memory_bytes == len(CONTENT)
        big = Document(Digest.of(b"big"), bytes(MEMORY_BYTES), (await each.get(D)).parsed, "", "")
        each._remember(big)
        assert (list(each._memory), each._memory_bytes) == ([big.digest], MEMORY_BYTES)
