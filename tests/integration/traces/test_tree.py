"""The trace of one pull, as a collector gets it from all parts of a real cluster."""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from stafett.cli.local_cluster.processes import wait_until
from tests.integration.traces.bed import CONTENT, D, TracedCluster, traced_cluster
from tests.integration.traces.otlp import Collector, Received, collector

READ = "stafett.api.v1.BlobService/Read"
STAT = "stafett.api.v1.BlobService/Stat"
LOCATE = "stafett.api.v1.TrackerService/Locate"
ROOT = "GET /v2/{name}/blobs/{digest}"


@dataclass(frozen=True)
class Tree:
    """A span by its service, kind and name, and what hangs below it."""

    service: str
    name: str
    below: list[Tree]


def shape(spans: Sequence[Received], parent_id: str) -> list[Tree]:
    """What hangs below a span: by name, and of one name in order of their ends."""
    below = [
        Tree(span.service, f"{span.kind} {span.name}", shape(spans, span.span_id))
        for span in spans
        if span.parent_id == parent_id
    ]
    return sorted(below, key=lambda tree: tree.name)


def arrived(received: Collector, trace_id: str) -> list[Received]:
    """The spans of a trace whose last ones are those of the request and of the node that served to the end."""

    def complete() -> bool:
        names = [(span.service, span.name) for span in received.of(trace_id)]
        return ("stafett-gateway", ROOT) in names and ("stafett-node", READ) in names

    wait_until(complete, "the trace at the collector")
    return received.of(trace_id)


def failover_is_told(traced: TracedCluster, root: Received) -> None:
    """The span of the request, its answer, and the log say the same of the failover."""
    failover = root.event("stafett.failover")
    assert (failover["stafett.holder"], failover["stafett.reason"]) == ("near", "broken")
    lines = [json.loads(line) for line in traced.gateway_log.splitlines()]
    [left] = [line for line in lines if line["event"] == "holder_left"]
    assert (left["trace_id"], left["span_id"]) == (root.trace_id, root.span_id)
    assert left["offset"] == failover["stafett.offset"]


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
def test_a_pull_with_a_failover_is_one_tree_below_the_span_of_its_client(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, protocol: str
) -> None:
    trace_id, client_span = secrets.token_hex(16), secrets.token_hex(8)
    with collector(protocol) as received:
        for name, value in received.environment.items():
            monkeypatch.setenv(name, value)
        with traced_cluster(tmp_path / "cluster") as traced:
            answer = traced.pull_with_failover({"traceparent": f"00-{trace_id}-{client_span}-01"})
            spans = arrived(received, trace_id)
            [root] = [span for span in spans if span.parent_id == client_span]
            failover_is_told(traced, root)
    assert answer.headers["Stafett-Trace-Id"] == trace_id
    assert {span.trace_id for span in received.spans} == {trace_id}, "nothing else makes traces, nothing strays in"

    [tree] = shape(spans, client_span)
    assert (tree.service, tree.name) == ("stafett-gateway", f"server {ROOT}")
    first_read, second_read, own_stat, *locates = tree.below
    assert own_stat == Tree("stafett-gateway", f"client {STAT}", [Tree("stafett-node", f"server {STAT}", [])])
    assert first_read == Tree("stafett-gateway", f"client {READ}", []), "who was killed tells nothing"
    assert second_read == Tree("stafett-gateway", f"client {READ}", [Tree("stafett-node", f"server {READ}", [])])
    assert len(locates) >= 2, "before the first attempt, and when nobody was left"
    assert {(locate.service, locate.name) for locate in locates} == {("stafett-gateway", f"client {LOCATE}")}
    told = [answered for locate in locates for answered in locate.below]
    assert told, "on a busy machine one may be given up before the tracker has begun"
    for answered in told:
        assert (answered.service, answered.name) == ("stafett-tracker", f"server {LOCATE}")
        assert "client EVALSHA locate" in [exchange.name for exchange in answered.below]

    assert root.attributes["http.response.status_code"] == 200
    assert root.attributes["http.route"] == "/v2/{name}/blobs/{digest}"
    assert root.attributes["stafett.digest"] == str(D)
    assert root.attributes["stafett.image"] == "reg.test/lib/app"
    assert root.attributes["stafett.size"] == len(CONTENT)
    assert root.attributes["stafett.holder"] == "near", "who sent the first bytes"
    assert (root.attributes["stafett.outcome"], root.attributes["stafett.source"]) == ("hit", "peer_region")
    assert root.event("stafett.located") == {"stafett.holders": 1}
    assert not root.failed

    near, far = [span for span in spans if span.name == READ and span.kind == "client"]
    assert near.failed
    assert not far.failed
    assert (near.attributes["stafett.attempt"], far.attributes["stafett.attempt"]) == (1, 2)
    assert (near.attributes["stafett.holder"], far.attributes["stafett.holder"]) == ("near", "far")
    assert (near.attributes["stafett.zone"], far.attributes["stafett.zone"]) == ("a", "b")
    assert (near.attributes["stafett.tier"], far.attributes["stafett.tier"]) == ("rack", "region")
    assert near.attributes["stafett.reason"] == near.attributes["error.type"] == "broken"
    received_before = near.attributes["stafett.received"]
    assert isinstance(received_before, int)
    assert received_before > 0
    assert far.attributes["stafett.offset"] == received_before
    assert far.attributes["stafett.received"] == len(CONTENT) - received_before


def not_sampled(trace_id: str) -> dict[str, str]:
    return {"traceparent": f"00-{trace_id}-{secrets.token_hex(8)}-00"}


def test_of_pulls_that_are_not_sampled_one_with_a_failover_is_exported_and_who_took_over_tells_its_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, failing = secrets.token_hex(16), secrets.token_hex(16)
    with collector("grpc") as received:
        for name, value in {**received.environment, "OTEL_TRACES_SAMPLER": "parentbased_always_off"}.items():
            monkeypatch.setenv(name, value)
        with traced_cluster(tmp_path / "cluster") as traced:
            answer, _ = traced.get(not_sampled(plain), f"/v2/lib/app/blobs/sha256:{'0' * 64}?ns=reg.test")
            assert (answer.status, answer.headers["Stafett-Trace-Id"]) == (404, plain)
            traced.pull_with_failover(not_sampled(failing))
            arrived(received, failing)
        spans = received.of(failing)  # all of them, as every service has ended and exported what it had
    [root] = [span for span in spans if span.name == ROOT]
    assert root.event("stafett.failover")["stafett.holder"] == "near"
    own = [span for span in spans if span.service == "stafett-gateway"]
    assert {span.name for span in own} == {ROOT, READ, STAT, LOCATE}
    assert {span.attributes["stafett.digest"] for span in own if span.name == READ} == {str(D)}, "as if it were sampled"
    after = [span for span in spans if span.service != "stafett-gateway"]
    assert {span.name for span in after if span.service == "stafett-node"} == {READ}, "not the Stat before the failover"
    first, *later = [span for span in own if span.name == LOCATE]
    answered = {span.parent_id for span in after if span.name == LOCATE}
    assert first.span_id not in answered, "the one before the failover"
    assert later
    for locate in later:
        given_up = locate.attributes["rpc.response.status_code"] != "OK"
        assert locate.span_id in answered or given_up, "on a busy machine one may be, before the tracker has begun"
    assert not received.of(plain)


def test_nothing_is_exported_and_nothing_told_where_traces_are_switched_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with collector("grpc") as received:
        for name, value in {**received.environment, "OTEL_TRACES_EXPORTER": "none"}.items():
            monkeypatch.setenv(name, value)
        with traced_cluster(tmp_path / "cluster") as traced:
            answer = traced.pull_with_failover({"traceparent": f"00-{secrets.token_hex(16)}-{secrets.token_hex(8)}-01"})
            assert "Stafett-Trace-Id" not in answer.headers
            assert "trace_id" not in traced.gateway_log
            assert '"holder_left"' in traced.gateway_log
        assert not received.spans, "all services have ended"
