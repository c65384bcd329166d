"""What a trace tells of a pull: the span of the request, those of the attempts at holders, and what happened meanwhile.

Names and attributes follow the semantic conventions where these have them, the others begin with `stafett.`;
docs/operations.md explains each. Where nothing is traced, all of this does nothing.
"""

from __future__ import annotations

from collections.abc import Mapping

from opentelemetry import context, trace
from opentelemetry.trace import INVALID_SPAN, Span, SpanKind, Status, StatusCode
from opentelemetry.util.types import AttributeValue
from starlette.types import ASGIApp, Receive, Scope, Send

from stafett.common.blob_rpc import READ_METHOD
from stafett.common.digest import Digest
from stafett.common.grpc_tracing import rpc_attributes
from stafett.common.tracing import TRACER, continued, for_pull, pull_of, recording
from stafett.gateway.request_path import ContentPath, Kind
from stafett.gateway.selection import Candidate

TRACE_HEADER = "Stafett-Trace-Id"
ROUTES = {Kind.BLOBS: "/v2/{name}/blobs/{digest}", Kind.MANIFESTS: "/v2/{name}/manifests/{reference}"}
TEXT_MAX = 500
"""Characters of what a client sends that are kept in a span."""
_PINGS = (b"/v2/", b"/v2")
_METHODS = ("GET", "HEAD")


class PullTraces:
    """An ASGI application before the pull API: each request is a span, in the trace that its client began."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on inside a span; what it sends and receives is not touched."""
        if scope["raw_path"] in _PINGS:
            await self._app(scope, receive, send)
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        method = scope["method"] if scope["method"] in _METHODS else "_OTHER"
        attributes: dict[str, AttributeValue] = {
            "http.request.method": method,
            "url.scheme": "http",
            "url.path": scope["raw_path"].decode("latin-1")[:TEXT_MAX],
            "url.query": scope["query_string"].decode("latin-1")[:TEXT_MAX],
            "server.port": scope["server"][1],
            "user_agent.original": headers.get("user-agent", "")[:TEXT_MAX],
        }
        token = context.attach(for_pull(continued(headers)))
        try:
            with TRACER.start_as_current_span(method, kind=SpanKind.SERVER, attributes=_stated(attributes)):
                await self._app(scope, receive, send)
        finally:
            context.detach(token)


def asked(method: str, path: ContentPath) -> None:
    """Note what a request is for."""
    span = trace.get_current_span()
    if span.is_recording():
        span.update_name(f"{method} {ROUTES[path.kind]}")
        span.set_attribute("http.route", ROUTES[path.kind])
        span.set_attribute("stafett.image", path.image)
        if path.digest is not None:
            span.set_attribute("stafett.digest", str(path.digest))


def answered(status: int, headers: Mapping[str, str]) -> Mapping[str, str]:
    """Note the head of an answer, and return its headers, with the trace's id if there is one."""
    span = trace.get_current_span()
    if not span.is_recording():
        return headers
    span.set_attribute("http.response.status_code", status)
    if status < 300:
        size = headers.get("Content-Range", "").rpartition("/")[2] or headers["Content-Length"]
        span.set_attributes(_stated({"stafett.size": int(size), "stafett.holder": headers.get("Stafett-Node", "")}))
    elif status >= 500:
        span.set_attribute("error.type", str(status))
        span.set_status(Status(StatusCode.ERROR))
    return {**headers, TRACE_HEADER: trace.format_trace_id(span.get_span_context().trace_id)}


def ended(outcome: str, source: str, *, cut: bool) -> None:
    """Note how an exchange ended, and where its last bytes came from; `cut`: with some missing."""
    span = trace.get_current_span()
    span.set_attributes({"stafett.outcome": outcome, "stafett.source": source})
    if cut:
        span.set_attribute("error.type", outcome)
        span.set_status(Status(StatusCode.ERROR, "nobody had the rest"))


def attempt(candidate: Candidate, digest: Digest, size_bytes: int, offset: int, number: int) -> Span:
    """Begin the span of one stream from one holder; the caller ends it."""
    if not recording():
        return INVALID_SPAN
    method = READ_METHOD.removeprefix("/")
    node = candidate.node
    attributes: dict[str, AttributeValue] = {
        **rpc_attributes(method),
        "server.address": node.address.host,
        "server.port": node.address.port,
        "stafett.digest": str(digest),
        "stafett.size": size_bytes,
        "stafett.offset": offset,
        "stafett.attempt": number,
        "stafett.holder": node.id,
        "stafett.zone": node.topology.zone,
        "stafett.tier": candidate.tier.name.lower(),
        "stafett.growing": candidate.growing,
    }
    return TRACER.start_span(method, kind=SpanKind.CLIENT, attributes=_stated(attributes))


def failover(attempt_span: Span, holder: str, reason: str, details: str, offset: int) -> None:
    """Note that a holder was left, at which byte; the trace is exported, sampled or not."""
    if not recording():
        return
    attempt_span.set_attributes({"stafett.reason": reason, "error.type": reason})
    attempt_span.set_status(Status(StatusCode.ERROR, details))
    failed("stafett.failover", holder=holder, reason=reason, offset=offset)


def failed(name: str, **attributes: AttributeValue) -> None:
    """Note an event for which the pull is exported, sampled or not."""
    event(name, **attributes)
    pull = pull_of()
    if pull is not None:
        pull.kept = True


def event(name: str, **attributes: AttributeValue) -> None:
    """Note that something happened to the pull; attribute names get `stafett.` before them."""
    span = trace.get_current_span()
    if span.is_recording():
        span.add_event(name, {f"stafett.{key}": value for key, value in attributes.items()})


def _stated(attributes: Mapping[str, AttributeValue]) -> dict[str, AttributeValue]:
    """Leave out what is not known."""
    return {name: value for name, value in attributes.items() if value != ""}
