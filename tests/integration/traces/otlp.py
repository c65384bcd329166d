"""A collector of the test's own: receives spans over OTLP, by gRPC or HTTP, and remembers them."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1 import trace_pb2

Value = str | int | float | bool | list[str]


@dataclass(frozen=True)
class Event:
    """Something that happened during a span."""

    name: str
    attributes: dict[str, Value]


@dataclass(frozen=True)
class Received:
    """A span as it arrived."""

    service: str
    name: str
    kind: str
    trace_id: str
    span_id: str
    parent_id: str
    attributes: dict[str, Value]
    events: list[Event]
    failed: bool

    def event(self, name: str) -> dict[str, Value]:
        """The attributes of the only event of that name."""
        [found] = [event for event in self.events if event.name == name]
        return found.attributes


@dataclass
class Collector:
    """What has arrived, in order of arrival."""

    protocol: str
    port: int = 0
    spans: list[Received] = field(default_factory=list)

    @property
    def environment(self) -> dict[str, str]:
        """What makes a service export to here, often."""
        return {
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{self.port}",
            "OTEL_EXPORTER_OTLP_PROTOCOL": self.protocol,
            "OTEL_BSP_SCHEDULE_DELAY": "100",
        }

    def of(self, trace_id: str) -> list[Received]:
        """The spans of one trace."""
        return [span for span in list(self.spans) if span.trace_id == trace_id]

    def take(self, request: trace_service_pb2.ExportTraceServiceRequest) -> None:
        for resource_spans in request.resource_spans:
            service = str(_attributes(resource_spans.resource.attributes)["service.name"])
            for scope_spans in resource_spans.scope_spans:
                self.spans += [_received(service, span) for span in scope_spans.spans]


@contextmanager
def collector(protocol: str, port: int = 0, host: str = "127.0.0.1") -> Iterator[Collector]:
    """Listen while inside; `protocol` as in OTEL_EXPORTER_OTLP_PROTOCOL."""
    running = Collector(protocol)
    with _grpc(running, f"{host}:{port}") if protocol == "grpc" else _http(running, port):
        yield running


@contextmanager
def _grpc(running: Collector, address: str) -> Iterator[None]:
    class Servicer(trace_service_pb2_grpc.TraceServiceServicer):
        def Export(self, request, context):  # type: ignore[no-untyped-def] # noqa: N802
            running.take(request)
            return trace_service_pb2.ExportTraceServiceResponse()

    server = grpc.server(ThreadPoolExecutor(4))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(Servicer(), server)  # type: ignore[no-untyped-call]
    running.port = server.add_insecure_port(address)
    server.start()
    try:
        yield
    finally:
        server.stop(None).wait()


@contextmanager
def _http(running: Collector, port: int) -> Iterator[None]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers["Content-Encoding"] == "gzip":
                body = gzip.decompress(body)
            assert self.path == "/v1/traces"
            assert self.headers["Content-Type"] == "application/x-protobuf"
            running.take(trace_service_pb2.ExportTraceServiceRequest.FromString(body))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    running.port = server.server_port
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _received(service: str, span: trace_pb2.Span) -> Received:
    return Received(
        service,
        span.name,
        trace_pb2.Span.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_").lower(),
        span.trace_id.hex(),
        span.span_id.hex(),
        span.parent_span_id.hex(),
        _attributes(span.attributes),
        [Event(event.name, _attributes(event.attributes)) for event in span.events],
        span.status.code == trace_pb2.Status.STATUS_CODE_ERROR,
    )


def _attributes(pairs: Iterable[KeyValue]) -> dict[str, Value]:
    return {pair.key: _value(pair.value) for pair in pairs}


def _value(value: AnyValue) -> Value:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [str(_value(each)) for each in value.array_value.values]
    found: Value = getattr(value, kind or "string_value")
    return found
