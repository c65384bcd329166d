"""A collector that is not there costs pulls nothing: they go on, and what is waiting for it stays little."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import httpx2
import pytest

from stafett.cli.local_cluster.processes import Process, free_port, wait_until
from stafett.common.digest import Digest
from tests.integration.gateway.bed import GatewayBed, Peer, gateway_bed
from tests.integration.traces.otlp import collector

BLOBS = {Digest.of(content): content for content in (bytes([number]) * 1000 for number in range(20))}
PULLS = 40
QUEUE = 32
BATCH = 8
SETTINGS = {
    "OTEL_EXPORTER_OTLP_TIMEOUT": "1",
    "OTEL_BSP_MAX_QUEUE_SIZE": str(QUEUE),
    "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": str(BATCH),
    "OTEL_BSP_SCHEDULE_DELAY": "50",
}


@contextmanager
def black_hole(port: int) -> Iterator[None]:
    """Take connections and never answer."""
    with socket.create_server(("127.0.0.1", port)):
        yield


@contextmanager
def nobody(port: int) -> Iterator[None]:
    """Connections are refused."""
    yield


async def pull(bed: GatewayBed, pulls: int = PULLS) -> None:
    digests = list(BLOBS)
    async with httpx2.AsyncClient(trust_env=False, timeout=20) as client:
        for number in range(pulls):
            digest = digests[number % len(digests)]
            answer = await client.get(f"{bed.url}/v2/a/blobs/{digest}?ns=reg.test")
            assert (answer.status_code, answer.content) == (200, BLOBS[digest])


def logged(process: Process, event: str) -> list[dict[str, object]]:
    lines = [json.loads(line) for line in process.log.read_text().splitlines()]
    return [line for line in lines if line["event"] == event]


async def logs(process: Process, event: str) -> None:
    """Wait until it does."""
    await asyncio.to_thread(wait_until, lambda: bool(logged(process, event)), event)


@pytest.mark.parametrize("away", [nobody, black_hole])
@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
async def test_pulls_go_on_without_a_collector_which_is_told_once_and_little_waits_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, protocol: str, away: Callable[[int], AbstractContextManager[None]]
) -> None:
    port = free_port()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", protocol)
    for name, value in SETTINGS.items():
        monkeypatch.setenv(name, value)
    async with gateway_bed(tmp_path, [Peer("n1", BLOBS)]) as bed:
        with away(port):
            await pull(bed)
            await logs(bed.process, "traces_not_exported")
            await asyncio.sleep(2)  # more exports fail meanwhile
            await pull(bed)
            [warning] = logged(bed.process, "traces_not_exported")
            assert warning["reason"]
            lines = {json.loads(line)["event"] for line in bed.process.log.read_text().splitlines()}
            assert lines <= {"listening", "traces_not_exported", "watch_ended"}, "libraries keep still"
        with collector(protocol, port) as received:
            await logs(bed.process, "traces_exported_again")
            old = len(received.spans)
        assert 0 < old <= QUEUE + BATCH


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
async def test_a_collector_that_never_answers_does_not_keep_a_service_from_ending(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, protocol: str
) -> None:
    port = free_port()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", protocol)
    async with gateway_bed(tmp_path, [Peer("n1", BLOBS)]) as bed:
        with black_hole(port):
            await pull(bed)
            assert await asyncio.to_thread(bed.process.stop) == 0, "it ends by itself, and well"


async def test_what_is_still_waiting_is_exported_when_a_service_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with collector("grpc") as received:
        for name, value in {**received.environment, "OTEL_BSP_SCHEDULE_DELAY": "3600000"}.items():
            monkeypatch.setenv(name, value)
        async with gateway_bed(tmp_path, [Peer("n1", BLOBS)]) as bed:
            await pull(bed, 5)
            assert not received.spans
            assert await asyncio.to_thread(bed.process.stop) == 0
        assert sum(span.kind == "server" for span in received.spans) == 5


async def test_a_gateway_whose_variables_are_wrong_serves_without_traces_and_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json")
    async with gateway_bed(tmp_path, [Peer("n1", BLOBS)]) as bed:
        await pull(bed, 2)
        [off] = logged(bed.process, "traces_off")
        assert "http/json" in str(off["reason"])
