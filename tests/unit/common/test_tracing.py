"""When traces are made at all, and which of them are exported."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping

import pytest
from opentelemetry import context, trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import DEFAULT_OFF, DEFAULT_ON, AlwaysRecordSampler, Sampler

from stafett.common.grpc_tracing import carried, traced_call
from stafett.common.trace_keeping import KeepFailed
from stafett.common.tracing import continued, for_pull, pull_of, wanted

FAILED = trace.Status(trace.StatusCode.ERROR)
TRACE_ID, SPAN_ID = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
ENDPOINT = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4317"}


@pytest.mark.parametrize(
    ("variables", "on"),
    [
        ({}, False),
        (ENDPOINT, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://collector:4318/v1/traces"}, True),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, True),
        ({"OTEL_TRACES_EXPORTER": "none", **ENDPOINT}, False),
        ({"OTEL_TRACES_EXPORTER": "console", **ENDPOINT}, False),
        ({"OTEL_SDK_DISABLED": "true", **ENDPOINT}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": ""}, False),
    ],
)
def test_traces_are_made_where_the_standard_variables_ask_for_them(variables: Mapping[str, str], on: bool) -> None:
    assert wanted(variables) is on


def test_a_service_without_traces_does_not_even_load_the_sdk() -> None:
    program = """
import sys
import stafett.gateway.app, stafett.node.app, stafett.tracker.app
from stafett.common.tracing import started, traces
with traces("gateway", "me"):
    assert not started()
    parts = ("opentelemetry.sdk.trace", "opentelemetry.exporter", "opentelemetry.proto", "requests")
    sys.exit([name for name in sys.modules if name.startswith(parts)] or 0)
"""
    done = subprocess.run([sys.executable, "-c", program], env={}, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


class Pulls:
    """A gateway's spans, with what is exported of them."""

    def __init__(self, sampler: Sampler, held_max: int = 100) -> None:
        self._memory = InMemorySpanExporter()
        self.keep = KeepFailed(SimpleSpanProcessor(self._memory), held_max)
        provider = TracerProvider(sampler=AlwaysRecordSampler(sampler), shutdown_on_exit=False)
        provider.add_span_processor(self.keep)
        self._tracer = provider.get_tracer("test")

    def begin(self, name: str, parent: trace.Span | None = None, within: context.Context | None = None) -> trace.Span:
        """Begin a pull, or with `parent` and `within` a span of one."""
        where = within if within is not None else for_pull(continued({}))
        return self._tracer.start_span(name, trace.set_span_in_context(parent, where) if parent else where)

    @property
    def exported(self) -> list[str]:
        return [span.name for span in self._memory.get_finished_spans()]

    @property
    def spans(self) -> tuple[ReadableSpan, ...]:
        return self._memory.get_finished_spans()


def test_an_unsampled_pull_that_went_well_is_not_exported() -> None:
    pulls = Pulls(DEFAULT_OFF)
    where = for_pull(continued({}))
    root = pulls.begin("root", within=where)
    pulls.begin("read", root, where).end()
    root.end()
    assert pulls.exported == []
    assert pulls.keep.held == 0


def test_of_an_unsampled_pull_in_which_something_failed_everything_is_exported_as_if_it_were_sampled() -> None:
    pulls = Pulls(DEFAULT_OFF)
    where = for_pull(continued({}))
    root = pulls.begin("root", within=where)
    pulls.begin("before", root, where).end()
    failed = pulls.begin("failed", root, where)
    failed.set_status(FAILED)
    failed.set_attribute("stafett.attempt", 1)
    failed.end()
    late = pulls.begin("late", root, where)
    assert pulls.exported == [], "not before the end"
    root.end()
    late.end()
    assert pulls.exported == ["before", "failed", "root", "late"]
    assert pulls.keep.held == 0
    for span in pulls.spans:
        assert span.context.trace_flags.sampled
        assert span.context.trace_id == root.get_span_context().trace_id
    [kept] = [span for span in pulls.spans if span.name == "failed"]
    assert kept.parent is not None
    assert kept.parent.span_id == root.get_span_context().span_id
    assert (kept.attributes, kept.status.status_code) == ({"stafett.attempt": 1}, trace.StatusCode.ERROR)


def test_a_pull_is_also_kept_when_told_so_and_one_beside_it_in_the_same_trace_is_not() -> None:
    pulls = Pulls(DEFAULT_OFF)
    headers = {"traceparent": f"00-{TRACE_ID}-{SPAN_ID}-00"}
    one, other = for_pull(continued(headers)), for_pull(continued(headers))
    roots = pulls.begin("one", within=one), pulls.begin("other", within=other)
    pull = pull_of(one)
    assert pull is not None
    pull.kept = True
    for root in roots:
        root.end()
    assert pulls.exported == ["one"]
    assert trace.format_trace_id(pulls.spans[0].context.trace_id) == TRACE_ID


def test_a_span_that_fails_after_the_pull_went_well_does_not_come_alone() -> None:
    pulls = Pulls(DEFAULT_OFF)
    where = for_pull(continued({}))
    root = pulls.begin("root", within=where)
    late = pulls.begin("late", root, where)
    root.end()
    late.set_status(FAILED)
    late.end()
    assert pulls.exported == []


def test_sampled_spans_are_exported_when_they_end() -> None:
    pulls = Pulls(DEFAULT_ON)
    where = for_pull(continued({}))
    root = pulls.begin("root", within=where)
    pulls.begin("read", root, where).end()
    assert pulls.exported == ["read"]
    root.end()
    assert pulls.exported == ["read", "root"]


def test_no_more_spans_are_held_than_there_is_room_for_and_the_room_is_given_back() -> None:
    pulls = Pulls(DEFAULT_OFF, held_max=10)
    running = []
    for _ in range(20):
        where = for_pull(continued({}))
        root = pulls.begin("root", within=where)
        pulls.begin("read", root, where).end()
        running.append(root)
    assert pulls.keep.held == 10
    for root in running:
        root.set_status(FAILED)
        root.end()
    assert pulls.keep.held == 0
    assert pulls.exported.count("read") == 10


def test_a_call_says_that_its_pull_is_sampled_once_something_has_failed() -> None:
    pulls = Pulls(DEFAULT_OFF)
    where = for_pull(continued({"traceparent": f"00-{TRACE_ID}-{SPAN_ID}-00", "tracestate": "vendor=1"}))
    token = context.attach(where)
    try:
        with trace.use_span(pulls.begin("root", within=where)) as root:
            own = trace.format_span_id(root.get_span_context().span_id)
            assert carried() == (("traceparent", f"00-{TRACE_ID}-{own}-00"), ("tracestate", "vendor=1"))
            pull = pull_of()
            assert pull is not None
            pull.kept = True
            assert carried() == (("traceparent", f"00-{TRACE_ID}-{own}-01"), ("tracestate", "vendor=1"))
            root.end()
            assert carried() is None, "what goes on after the end belongs to nobody"
    finally:
        context.detach(token)


def test_outside_a_trace_calls_carry_nothing() -> None:
    assert carried() is None
    with traced_call("TrackerService/Locate") as metadata:
        assert metadata is None


@pytest.mark.parametrize(
    "traceparent", ["", "x", f"00-{TRACE_ID}", f"ff-{TRACE_ID}-{SPAN_ID}-01", f"00-{'0' * 32}-{SPAN_ID}-01"]
)
def test_a_trace_context_that_breaks_the_standard_begins_a_new_trace(traceparent: str) -> None:
    assert not trace.get_current_span(continued({"traceparent": traceparent})).get_span_context().is_valid


@pytest.mark.parametrize(("members", "kept"), [(8, True), (9, False), (32, False)])
def test_a_tracestate_that_is_too_long_for_our_calls_is_not_passed_on(members: int, kept: bool) -> None:
    state = ",".join(f"vendor{number:02}={'x' * 50}" for number in range(members))
    headers = {"traceparent": f"00-{TRACE_ID}-{SPAN_ID}-01", "tracestate": state}
    parent = trace.get_current_span(continued(headers)).get_span_context()
    assert trace.format_trace_id(parent.trace_id) == TRACE_ID
    assert len(parent.trace_state) == (members if kept else 0)
