"""The pull API: manifests and blobs, by digest and by tag, out of the own store or from peers, or a 404."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import formatdate

import structlog
from starlette.types import Receive, Scope, Send

from stafett.common.digest import Digest
from stafett.common.errors import (
    BlobUnknown,
    Denied,
    ManifestUnknown,
    Overloaded,
    StafettError,
    Unavailable,
    Unsupported,
)
from stafett.common.oci import Index
from stafett.gateway import pull_trace
from stafett.gateway.byte_range import Span, resolve_range
from stafett.gateway.exchange import JSON, Exchange, Outcome
from stafett.gateway.expectations import Expectations
from stafett.gateway.manifests import Document, Manifests
from stafett.gateway.metrics import LOCAL, SOURCE_OF_TIER, UPSTREAM_CLAIM, GatewayMetrics
from stafett.gateway.oci_errors import error_body, error_response
from stafett.gateway.own_content import OwnContent
from stafett.gateway.relay import Relay
from stafett.gateway.request_path import ContentPath, Kind, parse_content_path
from stafett.gateway.settings import GatewaySettings
from stafett.gateway.sources import FIRST_PIECE_SECONDS
from stafett.gateway.sourcing import Sourcing
from stafett.gateway.tags import Port, Tags
from stafett.gateway.transfer import Transfer

log = structlog.get_logger()

BLOB_TYPE = "application/octet-stream"
EMPTY = Digest.of(b"")
RUNTIMES = ("containerd/", "stafett/")
"""User agents of clients that receive into the host's store."""


@dataclass(frozen=True)
class Request:
    """What a client asks: the parsed path, and the headers that matter."""

    path: ContentPath
    head: bool
    range: str | None
    from_containerd: bool

    @property
    def receiving(self) -> bool:
        """Whether the host's store may have a download open for it."""
        return self.from_containerd and not self.head


class Content:
    """An ASGI application for everything below /v2/."""

    def __init__(
        self,
        settings: GatewaySettings,
        own: OwnContent,
        relay: Relay,
        sourcing: Sourcing,
        manifests: Manifests,
        tags: Tags,
        expectations: Expectations,
        metrics: GatewayMetrics,
        ports: Mapping[int, Port],
    ) -> None:
        self._settings = settings
        self._own = own
        self._relay = relay
        self._sourcing = sourcing
        self._manifests = manifests
        self._tags = tags
        self._expectations = expectations
        self._metrics = metrics
        self._ports = ports
        self.running = 0
        """Requests that run now."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, and count how it ended."""
        exchange = Exchange(scope["method"], receive, send)
        self.running += 1
        kind = "other"
        try:
            self._check(scope["method"])
            if scope["raw_path"] in (b"/v2/", b"/v2"):
                await exchange.whole(
                    200, {"Content-Type": JSON, "Docker-Distribution-API-Version": "registry/2.0"}, b"{}"
                )
                return
            request = self._parse(scope)
            kind = request.path.kind.value
            pull_trace.asked(scope["method"], request.path)
            outcome = await self._answer(request, exchange, self._ports[scope["server"][1]])
        except StafettError as error:
            outcome = await _refuse(error, exchange)
        except Exception as error:
            log.error("request_crashed", exc_info=error)
            outcome = Outcome.TRUNCATED
            if not exchange.started:
                await exchange.whole(500, {"Content-Type": JSON}, error_body("UNKNOWN", "internal error"))
        finally:
            self.running -= 1
        self._metrics.count_request(kind, exchange.source, outcome, exchange.first_byte_seconds)
        pull_trace.ended(outcome.value, exchange.source, cut=outcome is Outcome.TRUNCATED)

    def _check(self, method: str) -> None:
        if method not in ("GET", "HEAD"):
            raise Unsupported(method)
        if self.running > self._settings.max_requests:
            raise Overloaded("requests", self._settings.max_requests)

    def _parse(self, scope: Scope) -> Request:
        path = parse_content_path(scope["raw_path"], scope["query_string"], self._settings.default_registry)
        if not self._settings.serves(path.image):
            raise Denied(path.image)
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        agent = headers.get(b"user-agent", "")
        return Request(path, scope["method"] == "HEAD", headers.get(b"range"), agent.startswith(RUNTIMES))

    async def _answer(self, request: Request, exchange: Exchange, port: Port) -> Outcome:
        if request.path.digest is None:
            return await self._tagged_manifest(request, exchange, port)
        if request.from_containerd:
            self._expectations.add(request.path.digest)
        try:
            if request.path.kind is Kind.MANIFESTS:
                return await self._manifest(request, request.path.digest, exchange, {})
            return await self._blob(request, request.path.digest, exchange)
        except (BlobUnknown, ManifestUnknown):
            if request.receiving and not exchange.started and self._sourcing.fetching(request.path.digest):
                exchange.source = UPSTREAM_CLAIM
            raise

    async def _tagged_manifest(self, request: Request, exchange: Exchange, port: Port) -> Outcome:
        target = await self._tags.resolve(request.path, port)
        age = max(0, round(time.time() - target.updated_at_unix_ms / 1000))
        updated = formatdate(target.updated_at_unix_ms / 1000, usegmt=True)
        return await self._manifest(request, target.digest, exchange, {"Age": str(age), "Last-Modified": updated})

    async def _manifest(
        self, request: Request, digest: Digest, exchange: Exchange, extra: Mapping[str, str]
    ) -> Outcome:
        document = await self._manifests.get(digest, receiving=request.receiving, image=request.path.image)
        await self._locate_children(request, document)
        headers = {
            **_headers(request.path, digest, document.parsed.media_type, document.source, document.node_id),
            **extra,
        }
        exchange.source = document.source
        await exchange.whole(200, headers, document.content)
        if not request.head:
            self._metrics.count_bytes(document.source, len(document.content))
        return Outcome.HIT

    async def _locate_children(self, request: Request, document: Document) -> None:
        """Look up everything below a manifest in one call; without it, refuse clients that cannot go elsewhere."""
        digests = [child.digest for child in document.parsed.children]
        located = await self._relay.locator.locate(digests)
        if request.path.namespace:
            return
        missing = [digest for digest in digests if not located[digest]]
        absent = [digest for digest in missing if not await self._is_own(digest)]
        platforms_left = isinstance(document.parsed, Index) and len(absent) < len(digests)
        if absent and not platforms_left:
            raise ManifestUnknown(document.digest)

    async def _is_own(self, digest: Digest) -> bool:
        if digest == EMPTY:
            return True
        blob = await self._own.open(digest)
        if blob is not None:
            blob.close()
        return blob is not None

    async def _blob(self, request: Request, digest: Digest, exchange: Exchange) -> Outcome:
        own = await self._own.open(digest)
        if own is None:
            return await self._peer_blob(request, digest, exchange)
        try:
            span = resolve_range(request.range, own.size_bytes)
            status, headers = _blob_head(request.path, digest, own.size_bytes, span, LOCAL, "")
            if request.head:
                exchange.source = LOCAL
                await exchange.finish_head(status, headers)
                return Outcome.HIT
            pieces = own.pieces(span)
            try:
                async with asyncio.timeout(FIRST_PIECE_SECONDS):
                    first = await anext(pieces, None)
            except (OSError, Unavailable, Overloaded, BlobUnknown) as error:
                await pieces.aclose()
                log.warning("own_blob_unreadable", digest=str(digest), reason=str(error), remedy="peers serve it")
                return await self._peer_blob(request, digest, exchange)
            exchange.source = LOCAL
            await exchange.start(status, headers)
            return await exchange.stream(first, pieces, lambda size: self._metrics.count_bytes(LOCAL, size))
        finally:
            own.close()

    async def _peer_blob(self, request: Request, digest: Digest, exchange: Exchange) -> Outcome:
        found = await self._sourcing.find(
            digest, receiving=request.receiving, ranged=request.range is not None, image=request.path.image
        )
        if found is None:
            raise BlobUnknown(digest)
        sources, size = found
        span = resolve_range(request.range, size)
        if request.head:
            best = await sources.next()
            exchange.source = SOURCE_OF_TIER[best.tier]
            status, headers = _blob_head(request.path, digest, size, span, exchange.source, best.node.id)
            await exchange.finish_head(status, headers)
            return Outcome.HIT
        if span.length == size and sources.one_stream:
            span = Span(0, size, False)  # several streams of one blob would each need a place in its tree
        resumed = request.receiving and span.offset > 0 and span.offset + span.length == size
        prefix = await self._own.prefix(digest, span.offset) if resumed else None
        transfer = Transfer(self._relay, digest, size, span, sources, prefix)
        pieces = transfer.pieces()
        try:
            first = await transfer.first_piece(pieces)
            server = transfer.served_by
            exchange.source, node_id = (SOURCE_OF_TIER[server.tier], server.node.id) if server else (LOCAL, "")
            status, headers = _blob_head(request.path, digest, size, span, exchange.source, node_id)
            await exchange.start(status, headers)
            return await exchange.stream(first, pieces, lambda length: self._count_peer(exchange, transfer, length))
        finally:
            await pieces.aclose()
            if transfer.spoilt and request.from_containerd:
                await self._own.discard_ingest(digest)

    def _count_peer(self, exchange: Exchange, transfer: Transfer, size_bytes: int) -> None:
        if transfer.served_by is not None:
            exchange.source = SOURCE_OF_TIER[transfer.served_by.tier]
            self._metrics.count_bytes(exchange.source, size_bytes)


async def _refuse(error: StafettError, exchange: Exchange) -> Outcome:
    if exchange.started:
        return Outcome.TRUNCATED
    status, body = error_response(error)
    await exchange.whole(status, {"Content-Type": JSON}, body)
    return Outcome.MISS if status == 404 else Outcome.REFUSED


def _headers(path: ContentPath, digest: Digest, media_type: str, source: str, node_id: str) -> dict[str, str]:
    headers = {
        "Content-Type": media_type,
        "Docker-Content-Digest": str(digest),
        "Accept-Ranges": "bytes",
        "Stafett-Source": source,
    }
    if node_id:
        headers["Stafett-Node"] = node_id
    if path.namespace:
        headers["OCI-Namespace"] = path.namespace
    return headers


def _blob_head(
    path: ContentPath, digest: Digest, size_bytes: int, span: Span, source: str, node_id: str
) -> tuple[int, dict[str, str]]:
    headers = {**_headers(path, digest, BLOB_TYPE, source, node_id), "Content-Length": str(span.length)}
    if not span.partial:
        return 200, headers
    return 206, {**headers, "Content-Range": span.content_range(size_bytes)}
