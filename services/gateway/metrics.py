"""What the gateway counts. Labels are few and fixed: no digest, no peer."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Literal, get_args

from prometheus_client import Counter, Histogram, Metric, generate_latest
from prometheus_client.registry import Collector

from stafett.common.metrics import counter, counters, new_registry
from stafett.common.topology import Tier
from stafett.gateway.exchange import MISS, Outcome
from stafett.gateway.request_path import Kind

LOCAL = "local"
UPSTREAM_CLAIM = "upstream_claim"
SOURCE_OF_TIER = {
    Tier.HOST: LOCAL,
    Tier.RACK: "peer_rack",
    Tier.ZONE: "peer_zone",
    Tier.REGION: "peer_region",
    Tier.WORLD: "peer_world",
}
_SERVED = tuple(SOURCE_OF_TIER.values())
_CROSS_ZONE = (SOURCE_OF_TIER[Tier.REGION], SOURCE_OF_TIER[Tier.WORLD])
_SOURCES_OF_OUTCOME = {
    Outcome.HIT: _SERVED,
    Outcome.TRUNCATED: _SERVED,
    Outcome.CLIENT_GONE: _SERVED,
    Outcome.MISS: (UPSTREAM_CLAIM, MISS),
    Outcome.REFUSED: (MISS,),
}
_FIRST_BYTE_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 15.0)

FailoverReason = Literal["broken", "stalled", "slow", "waited", "full", "draining", "gone", "other_size"]
"""Why a holder was left: waited is one that lives and itself gets nothing new."""


class GatewayMetrics(Collector):
    """Counters of one gateway, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = new_registry()
        self._requests = Counter(
            "stafett_gateway_requests",
            "Requests by kind, by where their last bytes came from, and by how they had ended when the last was sent.",
            ["kind", "source", "outcome"],
            registry=self.registry,
        )
        self._first_byte = Histogram(
            "stafett_gateway_first_byte_seconds",
            "Time until an answer began, by source; for misses until the 404 that sends the client upstream.",
            ["source"],
            buckets=_FIRST_BYTE_BUCKETS,
            registry=self.registry,
        )
        self._failovers = Counter(
            "stafett_gateway_failovers",
            "Holders left for the next one, by reason.",
            ["reason"],
            registry=self.registry,
        )
        self._quarantined = Counter(
            "stafett_gateway_quarantined",
            "Holders not asked again for a blob for a while, as bytes that they had a part in were wrong.",
            registry=self.registry,
        )
        self._hedges = Counter(
            "stafett_gateway_hedges",
            "Second holders asked because the first byte was late.",
            registry=self.registry,
        )
        self._sent_bytes = dict.fromkeys((*_SERVED, UPSTREAM_CLAIM), 0)
        self.registry.register(self)
        self._show_zeros()

    def _show_zeros(self) -> None:
        for reason in get_args(FailoverReason):
            self._failovers.labels(reason)
        for source in (*_SERVED, UPSTREAM_CLAIM, MISS):
            self._first_byte.labels(source)
        for kind, (outcome, sources) in product(Kind, _SOURCES_OF_OUTCOME.items()):
            for source in sources:
                self._requests.labels(kind.value, source, outcome.value)
        for outcome in (Outcome.MISS, Outcome.REFUSED):
            self._requests.labels("other", MISS, outcome.value)

    def count_request(self, kind: str, source: str, outcome: Outcome, first_byte_seconds: float | None) -> None:
        """Count one ended request; None if its answer never began."""
        self._requests.labels(kind, source, outcome.value).inc()
        if first_byte_seconds is not None:
            self._first_byte.labels(source).observe(first_byte_seconds)

    def count_bytes(self, source: str, size_bytes: int) -> None:
        """Count bytes sent."""
        self._sent_bytes[source] += size_bytes

    def count_failover(self, reason: FailoverReason) -> None:
        """Count one holder left."""
        self._failovers.labels(reason).inc()

    def count_quarantined(self, holders: int) -> None:
        """Count holders that may have sent wrong bytes."""
        self._quarantined.inc(holders)

    def count_hedge(self) -> None:
        """Count one second holder asked."""
        self._hedges.inc()

    def collect(self) -> Iterator[Metric]:
        """Show the bytes."""
        sent = dict(self._sent_bytes)
        yield counters(
            "stafett_gateway_bytes",
            "Content bytes that clients got, by source; those from upstream as far as they were fetched under a claim.",
            "source",
            sent,
        )
        yield counter(
            "stafett_gateway_upstream_saved_bytes",
            "Content bytes that clients got and upstream was not asked for.",
            sum(sent[source] for source in _SERVED),
        )
        yield counter(
            "stafett_gateway_cross_zone_bytes",
            "Content bytes that came from peers in other zones.",
            sum(sent[source] for source in _CROSS_ZONE),
        )

    def render(self) -> bytes:
        """Render the Prometheus text format."""
        return generate_latest(self.registry)
