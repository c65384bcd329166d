"""Whether this process makes traces, from its start to its end: the standard OTEL_* variables say so, nothing of ours.

Off, spans cost nothing: the SDK is not even imported. A trace begins in a gateway, or where its client began it;
trackers and nodes only continue what a call carries (`grpc_tracing`).
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from os import environ
from typing import TYPE_CHECKING

import structlog
from opentelemetry import context, trace
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan

log = structlog.get_logger()

FLUSH_SECONDS = 2.0
"""So long the end of a process waits for a collector."""
TRACESTATE_MAX = 512
"""What others must pass on; more of it from a client could make our calls too large for gRPC."""
TRACER = trace.get_tracer("stafett")

_PULL = context.create_key("stafett-pull")
_started = False


@dataclass
class Pull:
    """A request for content while it runs. `kept`: its spans are exported even if it was not sampled.

    The rest is `trace_keeping`'s: the first span's id, the spans that have ended, whether the first one has.
    """

    kept: bool = False
    root_id: int = 0
    spans: list[ReadableSpan] = field(default_factory=list)
    ended: bool = False


def wanted(variables: Mapping[str, str]) -> bool:
    """Tell whether the environment asks for traces: with an exporter, or with an endpoint for one."""
    exporter = variables.get("OTEL_TRACES_EXPORTER", "").strip()
    endpoint = variables.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") or variables.get("OTEL_EXPORTER_OTLP_ENDPOINT")
    disabled = variables.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"
    return not disabled and (exporter == "otlp" or (not exporter and bool(endpoint)))


@contextmanager
def traces(service: str, instance: str) -> Iterator[None]:
    """Make traces while inside, if they are wanted. Leaving takes `FLUSH_SECONDS` at most.

    To be entered in the process that makes them (its threads do not survive a fork), and once.
    """
    if not wanted(environ):
        yield
        return
    from stafett.common import trace_export

    global _started
    try:
        provider = trace_export.start(service, instance)
    except Exception as error:  # noqa: BLE001 - whatever is wrong with traces, pulls go on
        log.warning("traces_off", reason=str(error), remedy="correct the OTEL_* variables")
        yield
        return
    _started = True
    try:
        yield
    finally:
        closing = threading.Thread(target=provider.shutdown, daemon=True)
        closing.start()
        closing.join(FLUSH_SECONDS)


def started() -> bool:
    """Tell whether this process makes traces."""
    return _started


def recording() -> bool:
    """Tell whether something is being traced here and now."""
    return trace.get_current_span().is_recording()


def continued(headers: Mapping[str, str]) -> context.Context:
    """Read the W3C trace context out of a request's headers; where there is none a new trace begins."""
    carrier = {name: headers[name] for name in ("traceparent", "tracestate") if name in headers}
    if len(carrier.get("tracestate", "")) > TRACESTATE_MAX:
        del carrier["tracestate"]
    return TraceContextTextMapPropagator().extract(carrier, context.Context())


def for_pull(parent: context.Context) -> context.Context:
    """Make the context of a new pull out of its parent's."""
    return context.set_value(_PULL, Pull(), parent)


def pull_of(where: context.Context | None = None) -> Pull | None:
    """Return the pull that a context (default: the current one) belongs to."""
    found = context.get_value(_PULL, where)
    return found if isinstance(found, Pull) else None
