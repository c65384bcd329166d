"""A registry on loopback that misbehaves on order, for tests of the pull client."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from stafett.common import oci
from stafett.common.blob_files import blob_path
from stafett.common.digest import Digest
from stafett.common.errors import StafettError
from stafett.common.oci_layout import read_images


@dataclass
class Request:
    """One request as it arrived."""

    target: str
    headers: dict[str, str]

    @property
    def range_start(self) -> int:
        return int(self.headers.get("range", "bytes=0-").removeprefix("bytes=").removesuffix("-"))

    @property
    def is_blob(self) -> bool:
        return "/blobs/" in self.target


@dataclass
class Answer:
    """What is sent; `body` may be shorter or longer than the declared `length`."""

    status: int
    body: bytes = b""
    length: int = 0
    headers: dict[str, str] = field(default_factory=dict)


Fault = Callable[[Request, Answer], Answer]
"""Turns a good answer to a blob request into a bad one."""


@dataclass
class Registry:
    """Serves a layout by the distribution API; `fault` spoils its blobs."""

    layout: Path
    source: str = ""
    fault: Fault = field(default=lambda request, answer: answer)
    requests: list[Request] = field(default_factory=list)
    port: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def blob_requests(self) -> list[Request]:
        return [request for request in self.requests if request.is_blob]

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one request and close."""
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            pairs = (line.split(": ", 1) for line in head[1:] if line)
            request = Request(head[0].split()[1], {name.lower(): value for name, value in pairs})
            self.requests.append(request)
            answer = self._answer(request)
            answer = self.fault(request, answer) if request.is_blob else answer
            lines = [f"HTTP/1.1 {answer.status} x", f"Content-Length: {answer.length}", "Connection: close"]
            lines += [f"{name}: {value}" for name, value in answer.headers.items()]
            writer.write("\r\n".join([*lines, "", ""]).encode() + answer.body)
            await writer.drain()
        except ConnectionError:
            pass
        finally:
            writer.close()

    def _answer(self, request: Request) -> Answer:
        reference = request.target.partition("?")[0].rpartition("/")[2]
        try:
            content = blob_path(self.layout, self._resolve(reference)).read_bytes()
        except (StafettError, OSError, KeyError):
            return Answer(404)
        start = request.range_start
        rest = content[start:]
        headers = {"Stafett-Source": self.source} if self.source else {}
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        if not request.is_blob:
            headers["Content-Type"] = oci.parse_manifest(content).media_type
        return Answer(206 if start else 200, rest, len(rest), headers)

    def _resolve(self, reference: str) -> Digest:
        if ":" in reference:
            return Digest.parse(reference)
        return {image.name.rpartition(":")[2]: image.target.digest for image in read_images(self.layout)[0]}[reference]


@asynccontextmanager
async def running(registry: Registry) -> AsyncIterator[Registry]:
    """Serve on a free port of loopback."""
    serve: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]] = registry.serve
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    registry.port = server.sockets[0].getsockname()[1]
    async with server:
        yield registry


def cut_after(size_bytes: int) -> Fault:
    """End each body after so many bytes, by FIN."""
    return lambda request, answer: Answer(answer.status, answer.body[:size_bytes], answer.length, answer.headers)


def absent(request: Request, answer: Answer) -> Answer:
    """Have no blob."""
    return Answer(404)


def too_long(request: Request, answer: Answer) -> Answer:
    """Send a megabyte more than there is."""
    body = answer.body + bytes(1_000_000)
    return Answer(answer.status, body, len(body), answer.headers)


def wrong_bytes(request: Request, answer: Answer) -> Answer:
    """Send as many bytes as there are, but other ones."""
    return Answer(answer.status, bytes(len(answer.body)), answer.length, answer.headers)


def compressed_if_allowed(request: Request, answer: Answer) -> Answer:
    """Do what a proxy in the way may do when the client says that it takes gzip."""
    if "gzip" not in request.headers.get("accept-encoding", ""):
        return answer
    body = gzip.compress(answer.body)
    return Answer(answer.status, body, len(body), {**answer.headers, "Content-Encoding": "gzip"})
