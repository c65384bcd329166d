"""A small client of the distribution API that pulls the way containerd does: a list of hosts, tried in order each time.

A body that is cut goes on with a Range request, again from the first host; every digest is checked on the way.
"""

from __future__ import annotations

import secrets
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field

import httpx2

from stafett.common import oci
from stafett.common.digest import Digest
from stafett.common.errors import BlobUnknown, CorruptContent, ManifestUnknown, RequestInvalid, Unavailable
from stafett.common.oci import MANIFEST_MAX_BYTES, Descriptor, Index, Manifest, parse_manifest
from stafett.common.oci_layout import BlobWriter
from stafett.common.reference import Reference
from stafett.common.service import version

ACCEPT = ", ".join((oci.OCI_INDEX, oci.OCI_MANIFEST, oci.DOCKER_LIST, oci.DOCKER_MANIFEST))
TIMEOUT = httpx2.Timeout(30.0, connect=5.0)
FRUITLESS_TRIES = 3
PORT_MAX = 65535
UPSTREAM = "upstream"


@dataclass
class Tally:
    """Where the bytes came from, and the longest time that one running blob got none."""

    bytes_by_source: Counter[str] = field(default_factory=Counter)
    longest_gap_seconds: float = 0.0
    trace_id: str = ""
    """Of the trace of all requests, if a gateway makes one."""


@dataclass(frozen=True)
class Fetched:
    """A manifest or index as it was received."""

    descriptor: Descriptor
    content: bytes
    parsed: Manifest | Index


Progress = Callable[[Descriptor, int], None]
"""Hears of each piece: which blob, how many bytes."""


class RegistryClient:
    """Pulls one image's parts. An async context manager.

    Raises:
        RequestInvalid: if a host is not an http or https URL.
    """

    def __init__(self, hosts: Sequence[str], reference: Reference, tally: Tally) -> None:
        self._hosts = tuple(_checked(host) for host in hosts)
        self._reference = reference
        self._tally = tally
        # Offsets count the stored bytes, so nobody on the way may compress them.
        self._http = httpx2.AsyncClient(
            timeout=TIMEOUT,
            trust_env=False,
            follow_redirects=True,
            headers={
                "Accept-Encoding": "identity",
                "User-Agent": f"stafett/{version()}",
                "traceparent": f"00-{secrets.token_hex(16)}-{secrets.token_hex(8)}-01",
            },
        )

    async def __aenter__(self) -> RegistryClient:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._http.aclose()

    async def manifest(self, reference: str) -> Fetched:
        """Fetch a manifest or index by tag or digest from the first host that has it.

        Raises:
            ManifestUnknown: if none has. Unavailable: if none answers. CorruptContent: if the bytes do not match the
                digest asked for.
        """
        reasons = []
        answered = False
        for host in self._hosts:
            try:
                answer = await self._http.get(self._url(host, "manifests", reference), headers={"Accept": ACCEPT})
            except httpx2.HTTPError as error:
                reasons.append(f"{host}: {_reason(error)}")
                continue
            answered = True
            if answer.status_code == 200 and len(answer.content) <= MANIFEST_MAX_BYTES:
                return self._received(reference, answer)
            reasons.append(f"{host}: status {answer.status_code}")
        if not answered:
            raise Unavailable("the registry", "; ".join(reasons))
        raise ManifestUnknown(f"{reference} ({'; '.join(reasons)})")

    async def blob(self, blob: Descriptor, writer: BlobWriter, progress: Progress) -> None:
        """Fetch what is missing of a blob into the writer.

        Raises:
            BlobUnknown: if no host goes on delivering it.
        """
        fruitless = 0
        last_byte_at = time.monotonic()
        while writer.offset < blob.size_bytes:
            before = writer.offset
            reasons = []
            for host in self._hosts:
                try:
                    async for piece in self._pieces(host, blob, writer.offset):
                        last_byte_at = self._note_gap(last_byte_at)
                        writer.write(piece)
                        progress(blob, len(piece))
                except (httpx2.HTTPError, _Refused) as error:
                    reasons.append(f"{host}: {_reason(error)}")
                if writer.offset > before:
                    break
            fruitless = 0 if writer.offset > before else fruitless + 1
            if fruitless >= FRUITLESS_TRIES:
                raise BlobUnknown(f"{blob.digest} ({'; '.join(reasons)})")

    async def _pieces(self, host: str, blob: Descriptor, offset: int) -> AsyncIterator[bytes]:
        """Yield what one host sends of the blob from offset on, and nothing beyond its end."""
        headers = {"Range": f"bytes={offset}-"} if offset else {}
        async with self._http.stream("GET", self._url(host, "blobs", str(blob.digest)), headers=headers) as answer:
            skip = _bytes_to_skip(answer, offset)
            source = self._note_source(answer)
            left = blob.size_bytes - offset
            async for received in answer.aiter_raw():
                piece = received[skip : skip + left]
                skip = max(0, skip - len(received))
                left -= len(piece)
                self._tally.bytes_by_source[source] += len(piece)
                yield piece
                if not left:
                    return

    def _note_gap(self, last_byte_at: float) -> float:
        now = time.monotonic()
        self._tally.longest_gap_seconds = max(self._tally.longest_gap_seconds, now - last_byte_at)
        return now

    def _note_source(self, answer: httpx2.Response) -> str:
        self._tally.trace_id = answer.headers.get("Stafett-Trace-Id", self._tally.trace_id)
        return answer.headers.get("Stafett-Source", UPSTREAM)

    def _received(self, reference: str, answer: httpx2.Response) -> Fetched:
        content = answer.content
        digest = Digest.of(content)
        if ":" in reference and str(digest) != reference:
            raise CorruptContent(reference, str(answer.url.host))
        parsed = parse_manifest(content)
        self._tally.bytes_by_source[self._note_source(answer)] += len(content)
        return Fetched(Descriptor(parsed.media_type, digest, len(content)), content, parsed)

    def _url(self, host: str, kind: str, reference: str) -> str:
        registry = self._reference.registry
        namespace = "" if host.partition("://")[2] == registry else f"?ns={registry}"
        return f"{host}/v2/{self._reference.repository}/{kind}/{reference}{namespace}"


class _Refused(Exception):
    """A host's answer that holds no byte of what was asked for."""


def _bytes_to_skip(answer: httpx2.Response, offset: int) -> int:
    """Tell how many bytes stand before `offset` in the body.

    Raises:
        _Refused: if the body does not hold that offset.
    """
    if answer.status_code == 200:
        return offset
    if answer.status_code != 206:
        raise _Refused(f"status {answer.status_code}")
    content_range = answer.headers.get("Content-Range", "")
    if not content_range.startswith(f"bytes {offset}-"):
        raise _Refused(f"answered a range from {offset} with {content_range[:100]!r}")
    return 0


def _checked(host: str) -> str:
    try:
        url = httpx2.URL(host)
        good = url.scheme in ("http", "https") and bool(url.host) and (url.port or 0) <= PORT_MAX
    except httpx2.InvalidURL:
        good = False
    if not good:
        raise RequestInvalid("--via", f"{host[:100]!r} is not a URL like http://127.0.0.1:7462")
    return host.rstrip("/")


def _reason(error: Exception) -> str:
    said = str(error) or type(error).__name__
    return f"cannot connect ({said})" if isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout) else said
