"""The SDK: what is sampled, what is kept, and how spans get to the collector. Imported only where traces are made.

The exporters send from a thread of their own, out of a bounded queue that drops what is too much. That the collector is
away is told once, and once more when it is back.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from os import environ

import structlog
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import DEFAULT_OFF, AlwaysRecordSampler, Decision, SamplingResult
from opentelemetry.trace import Link, SpanKind, TraceState
from opentelemetry.util.types import Attributes

from stafett.common.trace_keeping import KeepFailed

log = structlog.get_logger()

BEGINS_TRACES = "gateway"
_TALKATIVE = ("opentelemetry.exporter", "opentelemetry.sdk._shared_internal")
"""Loggers that repeat themselves while the collector is away."""


def start(service: str, instance: str) -> TracerProvider:
    """Start making traces as `service`, of which this is `instance`.

    A gateway samples as OTEL_TRACES_SAMPLER says and keeps what fails; all others follow the call that they continue.

    Raises:
        Exception: if a variable has a value that the SDK or an exporter does not take.
    """
    named = Resource.create({"service.name": f"stafett-{service}", "service.instance.id": instance})
    provider = TracerProvider(resource=named.merge(OTELResourceDetector().detect()), shutdown_on_exit=False)
    batches = BatchSpanProcessor(ExportWatch(_exporter()))
    if service == BEGINS_TRACES:
        provider.sampler = _AlwaysRecord(provider.sampler)
        provider.add_span_processor(KeepFailed(batches))
    else:
        provider.sampler = DEFAULT_OFF
        provider.add_span_processor(batches)
    trace.set_tracer_provider(provider)
    return provider


class _AlwaysRecord(AlwaysRecordSampler):
    """The SDK's own one makes the spans that it rescues without the attributes that they begin with."""

    def should_sample(
        self,
        parent_context: Context | None,
        trace_id: int,
        name: str,
        kind: SpanKind | None = None,
        attributes: Attributes = None,
        links: Sequence[Link] | None = None,
        trace_state: TraceState | None = None,
    ) -> SamplingResult:
        result = super().should_sample(parent_context, trace_id, name, kind, attributes, links, trace_state)
        if result.attributes or result.decision is not Decision.RECORD_ONLY:
            return result
        return SamplingResult(result.decision, attributes, result.trace_state)


def _exporter() -> SpanExporter:
    protocol = environ.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or environ.get("OTEL_EXPORTER_OTLP_PROTOCOL") or "grpc"
    if protocol == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as Grpc

        return Grpc()
    if protocol == "http/protobuf":
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as Http

        return Http()
    raise ValueError(f"OTEL_EXPORTER_OTLP_PROTOCOL is {protocol!r}: grpc and http/protobuf are known")


class ExportWatch(SpanExporter):
    """Passes spans on to an exporter, and says in one line of ours what that repeats every few seconds."""

    def __init__(self, exporter: SpanExporter) -> None:
        self._exporter = exporter
        self._failing = False
        self._said = _LastSaid()
        for name in _TALKATIVE:
            logger = logging.getLogger(name)
            logger.handlers, logger.propagate = [self._said], False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Send a batch."""
        result = self._exporter.export(spans)
        failed = result is not SpanExportResult.SUCCESS
        if failed and not self._failing:
            remedy = "start the collector, or correct OTEL_EXPORTER_OTLP_ENDPOINT; spans are dropped until it answers"
            log.warning("traces_not_exported", reason=self._said.text, remedy=remedy)
        elif self._failing and not failed:
            log.info("traces_exported_again")
        self._failing = failed
        return result

    def shutdown(self) -> None:
        """End the exporter."""
        self._exporter.shutdown()


class _LastSaid(logging.Handler):
    text = ""

    def emit(self, record: logging.LogRecord) -> None:
        self.text = record.getMessage()
