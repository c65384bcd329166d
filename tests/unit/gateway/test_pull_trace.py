"""What the trace of a pull tells of its attempts, and of what happened meanwhile."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass

import pytest
from opentelemetry import context, trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.util.types import AttributeValue

from stafett.common.errors import BlobUnknown, CorruptContent
from stafett.common.relaying import Fetch, Refused
from stafett.common.tracing import for_pull, pull_of
from stafett.gateway import pull_trace
from stafett.gateway.byte_range import Span
from stafett.gateway.transfer import Transfer
from tests.unit.gateway import test_following, test_relay
from tests.unit.gateway.cluster import CHUNK, Script
from tests.unit.gateway.test_relay import CONTENT, D, relay


@dataclass
class Traced:
    """A request's span, and those that have ended."""

    tracer: trace.Tracer
    memory: InMemorySpanExporter

    def request(self) -> AbstractContextManager[trace.Span]:
        """Make a request's span the current one."""
        return self.tracer.start_as_current_span("root", kind=trace.SpanKind.SERVER)

    @property
    def root(self) -> ReadableSpan:
        [found] = [span for span in self.memory.get_finished_spans() if span.name == "root"]
        return found

    @property
    def attempts(self) -> list[ReadableSpan]:
        found = [span for span in self.memory.get_finished_spans() if span.name != "root"]
        return sorted(found, key=lambda span: int(str(span.attributes["stafett.attempt"])))  # type: ignore[index]

    def told(self, name: str) -> list[dict[str, AttributeValue]]:
        """The attributes of the request's events of a name."""
        return [dict(event.attributes or {}) for event in self.root.events if event.name == name]


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> Traced:
    """Inside the span of a request."""
    memory = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(memory))
    tracer = provider.get_tracer("test")
    monkeypatch.setattr(pull_trace, "TRACER", tracer)
    return Traced(tracer, memory)


async def test_a_stall_is_an_event_of_the_attempt_and_a_failover_of_the_request(traced: Traced) -> None:
    async with relay({"n1": Script(CONTENT, stalls_at=3 * CHUNK), "n2": Script(CONTENT)}) as stalling:
        with traced.request():
            assert await test_relay.pulled(stalling) == CONTENT
    first, second = traced.attempts
    [stall] = first.events
    assert stall.name == "stafett.stall"
    assert first.status.status_code is trace.StatusCode.ERROR
    assert first.attributes is not None
    assert (first.attributes["stafett.reason"], first.attributes["stafett.received"]) == ("stalled", 3 * CHUNK)
    assert traced.told("stafett.failover") == [
        {"stafett.holder": "n1", "stafett.reason": "stalled", "stafett.offset": 3 * CHUNK}
    ]
    assert second.attributes is not None
    assert (second.attributes["stafett.holder"], second.attributes["stafett.offset"]) == ("n2", 3 * CHUNK)
    assert second.status.is_ok
    assert {span.parent.span_id for span in (first, second) if span.parent} == {traced.root.context.span_id}


async def test_a_hedge_is_an_event_and_who_lost_the_race_has_not_failed(traced: Traced) -> None:
    slow = Script(CONTENT, waits=50)  # a second of waiting, which is no stall
    async with relay({"n1": slow, "n2": Script(CONTENT)}) as late:
        with traced.request():
            assert await test_relay.pulled(late) == CONTENT
    assert traced.told("stafett.hedge")[0] == {"stafett.holder": "n2", "stafett.reason": "late"}
    assert not traced.told("stafett.failover")
    loser, winner = traced.attempts
    assert loser.attributes is not None
    assert (loser.attributes["stafett.holder"], loser.attributes["stafett.reason"]) == ("n1", "lost_race")
    assert loser.status.is_ok
    assert winner.attributes is not None
    assert winner.attributes["stafett.received"] == len(CONTENT)


async def test_every_attempt_has_its_span_ended_when_all_fail_before_the_first_byte(traced: Traced) -> None:
    async with relay({name: Script(CONTENT, breaks_at=0) for name in ("n1", "n2")}) as failing:
        with traced.request(), pytest.raises(BlobUnknown):
            await test_relay.pulled(failing)
    assert len(traced.attempts) == len(traced.told("stafett.failover")) == 2
    assert all(span.status.status_code is trace.StatusCode.ERROR for span in traced.attempts)


async def test_a_client_that_hangs_up_ends_the_attempt_without_a_failure(traced: Traced) -> None:
    async with relay({"n1": Script(CONTENT)}) as left:
        with traced.request():
            pieces = Transfer(left, D, len(CONTENT), Span(0, len(CONTENT), False)).pieces()
            await anext(pieces)
            assert trace.get_current_span().is_recording(), "the request's span is current, not the attempt's"
            await pieces.aclose()
    [attempt] = traced.attempts
    assert attempt.status.is_ok
    assert attempt.attributes is not None
    assert attempt.attributes["stafett.received"] == CHUNK


@pytest.mark.parametrize(
    ("answer", "event", "told"),
    [
        (Fetch(7), "stafett.claim", {"stafett.offset": 0}),
        (Refused("overdue"), "stafett.claim_refused", {"stafett.reason": "overdue"}),
    ],
)
async def test_a_claim_granted_or_refused_is_an_event(
    traced: Traced, answer: Fetch | Refused, event: str, told: dict[str, object]
) -> None:
    async with test_following.bed({}, [answer]) as parts:
        parts.own.states = [None]
        with traced.request(), pytest.raises(BlobUnknown):
            await parts.pull()
    assert traced.told(event) == [told]


async def test_without_traces_nothing_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pull_trace, "TRACER", None)
    async with relay({"n1": Script(CONTENT, breaks_at=CHUNK), "n2": Script(CONTENT)}) as plain:
        assert await test_relay.pulled(plain) == CONTENT


async def test_wrong_bytes_are_an_event_and_keep_the_pull(traced: Traced) -> None:
    token = context.attach(for_pull(context.get_current()))
    try:
        async with relay({"liar": Script(bytes(len(CONTENT)))}) as lying:
            with traced.request(), pytest.raises(CorruptContent):
                await test_relay.pulled(lying)
        pull = pull_of()
    finally:
        context.detach(token)
    assert traced.told("stafett.wrong_bytes") == [{"stafett.holders": ("liar",)}]
    assert pull is not None
    assert pull.kept
