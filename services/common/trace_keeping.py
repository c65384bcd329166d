"""Which spans are exported of a pull that was not sampled: all if something in it failed, else none.

That is known at its end, so its spans are kept in memory until then; this process' own ones only. What trackers and
nodes did before the failure is not there, as they had been told that the pull is not sampled (see `grpc_tracing`).
"""

from __future__ import annotations

from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor
from opentelemetry.trace import INVALID_SPAN_CONTEXT, SpanContext, StatusCode, TraceFlags

from stafett.common.tracing import Pull, pull_of

HELD_MAX = 5000
"""Spans of all pulls that are kept at the same time; of those beyond it nothing is. A pull has less than ten."""


class KeepFailed(SpanProcessor):
    """Passes sampled spans on at once, those of other pulls at their end if they failed. Of one thread only."""

    def __init__(self, passed_on: SpanProcessor, held_max: int = HELD_MAX) -> None:
        self._passed_on = passed_on
        self._held_max = held_max
        self._open: dict[int, Pull] = {}
        """The pulls of open spans, by span id."""
        self.held = 0

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        """Note to which pull a span belongs; its end does not tell."""
        pull = pull_of(parent_context)
        own = span.get_span_context()
        if pull is not None and not own.trace_flags.sampled:
            pull.root_id = pull.root_id or own.span_id
            self._open[own.span_id] = pull

    def on_end(self, span: ReadableSpan) -> None:
        """Keep a span, or decide about its pull."""
        span_id = _own(span).span_id
        pull = self._open.pop(span_id, None)
        if pull is None:
            self._passed_on.on_end(span)
            return
        if not pull.ended and span.status.status_code is StatusCode.ERROR:
            pull.kept = True
        if self.held < self._held_max:
            pull.spans.append(span)
            self.held += 1
        pull.ended = pull.ended or span_id == pull.root_id
        if pull.ended:
            self._decide(pull)

    def _decide(self, pull: Pull) -> None:
        for span in pull.spans if pull.kept else ():
            self._passed_on.on_end(_sampled(span))
        self.held -= len(pull.spans)
        pull.spans.clear()

    def shutdown(self) -> None:
        """End the processor that comes next."""
        self._passed_on.shutdown()


def _own(span: ReadableSpan) -> SpanContext:
    return span.get_span_context() or INVALID_SPAN_CONTEXT


def _sampled(span: ReadableSpan) -> ReadableSpan:
    """Copy a span as one that was sampled from the start, which exporters demand."""
    own = _own(span)
    flags = TraceFlags(own.trace_flags | TraceFlags.SAMPLED)
    return ReadableSpan(
        name=span.name,
        context=SpanContext(own.trace_id, own.span_id, own.is_remote, flags, own.trace_state),
        parent=span.parent,
        resource=span.resource,
        attributes=span.attributes,
        events=span.events,
        links=span.links,
        kind=span.kind,
        status=span.status,
        start_time=span.start_time,
        end_time=span.end_time,
        instrumentation_scope=span.instrumentation_scope,
    )
