"""A small client of the distribution API that pulls the way containerd does: a list of hosts, tried in order each time.

A body that is cut goes on with a Range request, again from the first host; every digest is checked on the way.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import httpx2

from stafett.common import oci
from stafett.common.digest import Digest
from stafett.common.errors import BlobUnknown, CorruptContent, ManifestUnknown
from stafett.common.oci import MANIFEST_MAX_BYTES, Descriptor, Index, Manifest, parse_manifest
from stafett.common.oci_layout import BlobWriter
from stafett.common.reference import Reference

ACCEPT = ", ".join((oci.OCI_INDEX, oci.OCI_MANIFEST, oci.DOCKER_LIST, oci.DOCKER_MANIFEST))
TIMEOUT = httpx2.Timeout(30.0, connect=5.0)
FRUITLESS_TRIES = 3
UPSTREAM = "upstream"


@dataclass
class Tally:
    """Where the bytes came from, and the longest time that one running blob got none."""

    bytes_by_source: Counter[str] = field(default_factory=Counter)
    longest_gap_seconds: float = 0.0


@dataclass(frozen=True)
class Fetched:
    """A manifest or index as it was received."""

    descriptor: Descriptor
    content: bytes
    parsed: Manifest | Index


Progress = Callable[[Descriptor, int], None]
"""Hears of each piece: which blob, how many bytes."""


class RegistryClient:
    """Pulls one image's parts. An async context manager."""

    def __init__(self, hosts: Sequence[str], reference: Reference, tally: Tally) -> None:
        self._hosts = tuple(host.rstrip("/") for host in hosts)
        self._reference = reference
        self._tally = tally
        self._http = httpx2.AsyncClient(timeout=TIMEOUT, trust_env=False, follow_redirects=True)

    async def __aenter__(self) -> RegistryClient:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._http.aclose()

    async def manifest(self, reference: str) -> Fetched:
        """Fetch a manifest or index by tag or digest from the first host that has it.

        Raises:
            ManifestUnknown: if none has. CorruptContent: if the bytes do not match the digest asked for.
        """
        for host in self._hosts:
            try:
                answer = await self._http.get(self._url(host, "manifests", reference), headers={"Accept": ACCEPT})
            except httpx2.HTTPError:
                continue
            if answer.status_code == 200 and len(answer.content) <= MANIFEST_MAX_BYTES:
                return self._received(reference, answer)
        raise ManifestUnknown(f"{self._reference.repository}:{reference}")

    async def blob(self, blob: Descriptor, writer: BlobWriter, progress: Progress) -> None:
        """Fetch what is missing of a blob into the writer.

        Raises:
            BlobUnknown: if no host goes on delivering it.
        """
        fruitless = 0
        last_byte_at = time.monotonic()
        while writer.offset < blob.size_bytes:
            before = writer.offset
            for host in self._hosts:
                last_byte_at = await self._read_from(host, blob, writer, progress, last_byte_at)
                if writer.offset > before:
                    break
            fruitless = 0 if writer.offset > before else fruitless + 1
            if fruitless >= FRUITLESS_TRIES:
                raise BlobUnknown(blob.digest)

    async def _read_from(
        self, host: str, blob: Descriptor, writer: BlobWriter, progress: Progress, last_byte_at: float
    ) -> float:
        """Read from one host until it ends or breaks; return when the last byte came."""
        headers = {"Range": f"bytes={writer.offset}-"} if writer.offset else {}
        try:
            async with self._http.stream("GET", self._url(host, "blobs", str(blob.digest)), headers=headers) as answer:
                if answer.status_code not in (200, 206):
                    return last_byte_at
                skip = writer.offset if answer.status_code == 200 else 0
                source = answer.headers.get("Stafett-Source", UPSTREAM)
                async for piece in answer.aiter_raw():
                    now = time.monotonic()
                    self._tally.longest_gap_seconds = max(self._tally.longest_gap_seconds, now - last_byte_at)
                    last_byte_at = now
                    wanted = piece[skip:]
                    skip = max(0, skip - len(piece))
                    writer.write(wanted)
                    self._tally.bytes_by_source[source] += len(wanted)
                    progress(blob, len(wanted))
        except httpx2.HTTPError:
            pass
        return last_byte_at

    def _received(self, reference: str, answer: httpx2.Response) -> Fetched:
        content = answer.content
        digest = Digest.of(content)
        if ":" in reference and str(digest) != reference:
            raise CorruptContent(reference, str(answer.url.host))
        parsed = parse_manifest(content)
        self._tally.bytes_by_source[answer.headers.get("Stafett-Source", UPSTREAM)] += len(content)
        return Fetched(Descriptor(parsed.media_type, digest, len(content)), content, parsed)

    def _url(self, host: str, kind: str, reference: str) -> str:
        return f"{host}/v2/{self._reference.repository}/{kind}/{reference}?ns={self._reference.registry}"
