"""Traces across gRPC: what a call carries (W3C trace context), and the spans of its two ends.

A call of a pull that is not sampled says so, until something in the pull has failed: what is asked from then on is
sampled, so that the trace shows who took over. Messages are not touched, whatever their (de)serializers are.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import grpc
from opentelemetry import context, trace
from opentelemetry.trace import SpanKind, Status, StatusCode, TraceFlags

from stafett.common.tracing import TRACER, continued, pull_of, recording, started

Metadata = tuple[tuple[str, str], ...]

_ANSWERS = (grpc.StatusCode.OK, grpc.StatusCode.NOT_FOUND)
"""Not to have something is no error here."""
_STATUS = "rpc.response.status_code"
_FINE = {_STATUS: grpc.StatusCode.OK.name}
"""Until something else is noted."""
_PACKAGE = "stafett.api.v1"


def rpc_attributes(method: str) -> dict[str, str]:
    """Describe a call of "package.Service/Method", by the semantic conventions."""
    return {"rpc.system.name": "grpc", "rpc.method": method}


def carried() -> Metadata | None:
    """Return the metadata that a call made here and now carries, None if nothing is being traced."""
    span, pull = trace.get_current_span(), pull_of()
    if not span.is_recording():
        return None
    own = span.get_span_context()
    flags = own.trace_flags | TraceFlags.SAMPLED if pull and pull.kept else own.trace_flags
    traceparent = f"00-{trace.format_trace_id(own.trace_id)}-{trace.format_span_id(own.span_id)}-{flags:02x}"
    state = own.trace_state.to_header()
    return (("traceparent", traceparent), ("tracestate", state)) if state else (("traceparent", traceparent),)


@contextmanager
def traced_call(method: str, *, wanted: bool = True) -> Iterator[Metadata | None]:
    """Make a span of a call of "Service/Method" with one answer, where something is traced; gives its metadata."""
    if not wanted or not recording():
        yield None
        return
    name = f"{_PACKAGE}.{method}"
    with TRACER.start_as_current_span(
        name,
        kind=SpanKind.CLIENT,
        attributes={**rpc_attributes(name), **_FINE},
        record_exception=False,
        set_status_on_exception=False,
    ) as span:
        try:
            yield carried()
        except grpc.aio.AioRpcError as error:
            note_status(span, error.code(), error.details() or "")
            raise
        except asyncio.CancelledError:
            span.set_attribute(_STATUS, grpc.StatusCode.CANCELLED.name)
            raise


def note_status(span: trace.Span, code: grpc.StatusCode, details: str) -> None:
    """Note how a call ended, if not well."""
    span.set_attribute(_STATUS, code.name)
    if code not in _ANSWERS:
        span.set_status(Status(StatusCode.ERROR, details))


def server_interceptors() -> Sequence[grpc.aio.ServerInterceptor]:
    """Return what servers need to continue traces; nothing where this process makes none."""
    return [_ContinueTraces()] if started() else []


class _ContinueTraces(grpc.aio.ServerInterceptor):
    """Makes a span of each call that carries a trace.

    gRPC handles a call in a task of its own, so the span is simply the current one in that task until it ends: nothing
    is wrapped, nothing is done per message, and there is no context to restore in a generator that nobody finishes.
    """

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        headers = {key: value for key, value in handler_call_details.invocation_metadata if isinstance(value, str)}
        task = asyncio.current_task()
        if task is not None and "traceparent" in headers:
            method = handler_call_details.method.removeprefix("/")
            parent = continued(headers)
            attributes = {**rpc_attributes(method), **_FINE}
            span = TRACER.start_span(method, parent, kind=SpanKind.SERVER, attributes=attributes)
            context.attach(trace.set_span_in_context(span))
            task.add_done_callback(lambda ended: _end(span, cancelled=ended.cancelling() > 0))
        return await continuation(handler_call_details)


def _end(span: trace.Span, *, cancelled: bool) -> None:
    """End a call's span; gRPC swallows the cancellation of a call whose client has given up."""
    if cancelled:
        span.set_attribute(_STATUS, grpc.StatusCode.CANCELLED.name)
    span.end()
