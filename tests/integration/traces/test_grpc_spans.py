"""The spans of calls at both ends, over real gRPC: they end however a call ends, and touch no other call."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import grpc
import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from stafett.api.v1 import node_pb2, node_pb2_grpc
from stafett.common import grpc_tracing
from stafett.common.blob_codec import BlobInfo, Frame
from stafett.common.blob_rpc import add_blob_service, read_frames
from stafett.common.cluster import Address
from stafett.common.errors import BlobUnknown, Unavailable
from stafett.common.grpc_tracing import carried, traced_call
from stafett.common.grpc_transport import bind, new_server, peer_channel

CHUNK = bytes(100_000)
READ = "stafett.api.v1.BlobService/Read"
STAT = "stafett.api.v1.BlobService/Stat"


class Servicer:
    """Answers by digest: "endless" and "slow" never end by themselves, "gone" and "broken" fail."""

    def __init__(self) -> None:
        self.seen: list[int] = []
        """The span ids that were current in handlers."""

    async def Stat(self, request: node_pb2.StatRequest, context: object) -> node_pb2.StatResponse:  # noqa: N802
        self.note()
        if request.digest == "gone":
            raise BlobUnknown(request.digest)
        if request.digest == "broken":
            raise Unavailable("disk", "it is gone")
        if request.digest == "slow":
            await asyncio.sleep(3600)
        return node_pb2.StatResponse()

    async def Read(self, request: node_pb2.ReadRequest, context: object) -> AsyncGenerator[Frame, None]:  # noqa: N802
        self.note()
        yield BlobInfo(len(CHUNK))
        while True:
            yield CHUNK
            self.note()
            if request.digest != "endless":
                break

    def note(self) -> None:
        self.seen.append(trace.get_current_span().get_span_context().span_id)


@dataclass
class Bed:
    """A server and a channel to it, and a tracer for the client's side."""

    servicer: Servicer
    channel: grpc.aio.Channel
    tracer: trace.Tracer
    memory: InMemorySpanExporter

    async def stat(self, digest: str, timeout_seconds: float = 5.0) -> None:
        with traced_call("BlobService/Stat") as metadata:
            stub = node_pb2_grpc.BlobServiceStub(self.channel)
            await stub.Stat(node_pb2.StatRequest(digest=digest), timeout=timeout_seconds, metadata=metadata)

    async def ended(self, name: str, kind: trace.SpanKind) -> ReadableSpan:
        """Wait for the only span of a name and kind."""
        async with asyncio.timeout(10):
            while not self.spans(name, kind):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        [found] = self.spans(name, kind)
        return found

    def spans(self, name: str, kind: trace.SpanKind) -> list[ReadableSpan]:
        return [span for span in self.memory.get_finished_spans() if (span.name, span.kind) == (name, kind)]


@pytest.fixture
async def bed(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Bed]:
    """Both ends make traces."""
    memory = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(memory))
    tracer = provider.get_tracer("test")
    monkeypatch.setattr(grpc_tracing, "TRACER", tracer)
    monkeypatch.setattr(grpc_tracing, "started", lambda: True)
    async with serving() as (servicer, channel):
        yield Bed(servicer, channel, tracer, memory)


@asynccontextmanager
async def serving() -> AsyncIterator[tuple[Servicer, grpc.aio.Channel]]:
    servicer = Servicer()
    server, _ = new_server()
    add_blob_service(server, servicer)
    port = bind(server, Address("127.0.0.1", 0), None)
    await server.start()
    channel = peer_channel(Address("127.0.0.1", port), None)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(server.stop, None)
        stack.push_async_callback(channel.close)
        yield servicer, channel


@pytest.mark.parametrize(
    ("digest", "status", "client_failed", "server_failed"),
    [("here", "OK", False, False), ("gone", "NOT_FOUND", False, False), ("broken", "UNAVAILABLE", True, True)],
)
async def test_both_ends_note_how_a_call_ended_and_having_nothing_is_no_error(
    bed: Bed, digest: str, status: str, client_failed: bool, server_failed: bool
) -> None:
    with bed.tracer.start_as_current_span("root"), contextlib.suppress(grpc.aio.AioRpcError):
        await bed.stat(digest)
    client = await bed.ended(STAT, trace.SpanKind.CLIENT)
    server = await bed.ended(STAT, trace.SpanKind.SERVER)
    assert client.attributes is not None
    assert server.attributes is not None
    assert client.attributes["rpc.response.status_code"] == server.attributes["rpc.response.status_code"] == status
    assert (not client.status.is_ok, not server.status.is_ok) == (client_failed, server_failed)
    assert server.parent is not None
    assert server.parent.span_id == client.context.span_id


async def test_a_call_whose_client_gives_up_has_its_spans_too(bed: Bed) -> None:
    with bed.tracer.start_as_current_span("root"), pytest.raises(TimeoutError):
        async with asyncio.timeout(0.3):
            await bed.stat("slow")
    client = await bed.ended(STAT, trace.SpanKind.CLIENT)
    server = await bed.ended(STAT, trace.SpanKind.SERVER)
    assert server.parent is not None
    assert server.parent.span_id == client.context.span_id
    assert client.attributes is not None
    assert server.attributes is not None
    assert client.attributes["rpc.response.status_code"] == server.attributes["rpc.response.status_code"] == "CANCELLED"


async def test_a_byte_stream_that_its_reader_leaves_ends_its_span_and_nothing_complains(
    bed: Bed, caplog: pytest.LogCaptureFixture
) -> None:
    read = read_frames(bed.channel)
    with bed.tracer.start_as_current_span("root"):
        call = read(node_pb2.ReadRequest(digest="endless"), timeout=30, metadata=carried())
        frames = [await anext(aiter(call)) for _ in range(3)]
        call.cancel()
    assert frames[1:] == [CHUNK, CHUNK]
    server = await bed.ended(READ, trace.SpanKind.SERVER)
    assert server.attributes is not None
    assert server.attributes["rpc.response.status_code"] == "CANCELLED"
    assert set(bed.servicer.seen) == {server.context.span_id}, "current from the first frame to the last"
    assert not [record for record in caplog.records if record.name.startswith("opentelemetry")]


async def test_calls_at_the_same_time_do_not_see_each_others_spans_and_one_without_a_trace_sees_none(bed: Bed) -> None:
    read = read_frames(bed.channel)

    async def consume(metadata: grpc_tracing.Metadata | None) -> None:
        async for _ in read(node_pb2.ReadRequest(digest="once"), timeout=30, metadata=metadata):
            await asyncio.sleep(0)

    with bed.tracer.start_as_current_span("root"):
        traced = carried()
    await asyncio.gather(*(consume(traced if number % 2 else None) for number in range(20)))
    async with asyncio.timeout(10):
        while len(bed.spans(READ, trace.SpanKind.SERVER)) < 10:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    ids = [span.context.span_id for span in bed.spans(READ, trace.SpanKind.SERVER)]
    assert sorted(bed.servicer.seen) == sorted([*ids, *ids, *[0] * 20]), "each handler notes twice"


async def test_without_traces_a_server_takes_no_notice_of_what_calls_carry() -> None:
    async with serving() as (servicer, channel):
        stub = node_pb2_grpc.BlobServiceStub(channel)
        metadata = (("traceparent", f"00-{'1' * 32}-{'2' * 16}-01"),)
        await stub.Stat(node_pb2.StatRequest(digest="here"), timeout=5, metadata=metadata)
        assert servicer.seen == [0]
