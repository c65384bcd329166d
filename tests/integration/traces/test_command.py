"""`stafett pull` says where its pull is among the traces."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

import pytest

from stafett.cli.local_cluster.parts import run
from stafett.cli.local_cluster.processes import wait_until
from tests.integration.gateway.bed import Peer, gateway_bed
from tests.integration.gateway.test_http import M, blobs
from tests.integration.traces.otlp import collector


async def test_a_pull_by_hand_is_one_trace_whose_id_it_prints_where_the_gateway_makes_traces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def pull(name: str, *options: str) -> str:
        command = (sys.executable, "-m", "stafett", "pull", f"reg.test/lib/app@{M}", "--all-platforms", *options)
        done = await asyncio.to_thread(run, [*command, "--via", bed.url, "--to", tmp_path / name])
        assert done.returncode == 0, done.stderr
        return done.stdout

    async with gateway_bed(tmp_path / "plain", [Peer("n1", blobs())]) as bed:
        assert "trace" not in await pull("untraced")
    with collector("grpc") as received:
        for name, value in {**received.environment, "OTEL_TRACES_SAMPLER": "parentbased_always_off"}.items():
            monkeypatch.setenv(name, value)
        async with gateway_bed(tmp_path / "traced", [Peer("n1", blobs())]) as bed:
            trace_id = json.loads(await pull("image", "--json"))["trace_id"]

            def requests() -> list[str]:
                return sorted(span.name for span in received.of(trace_id) if span.kind == "server")

            await asyncio.to_thread(wait_until, lambda: len(requests()) == len(blobs()), "a span of each request")
            assert ", trace " in await pull("again")
    assert requests() == ["GET /v2/{name}/blobs/{digest}"] * 2 + ["GET /v2/{name}/manifests/{reference}"]
