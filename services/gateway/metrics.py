"""What the gateway counts. Labels are few and fixed: no digest, no peer."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, generate_latest

from stafett.common.topology import Tier

LOCAL = "local"
UPSTREAM_CLAIM = "upstream_claim"
SOURCE_OF_TIER = {
    Tier.HOST: LOCAL,
    Tier.RACK: "peer_rack",
    Tier.ZONE: "peer_zone",
    Tier.REGION: "peer_region",
    Tier.WORLD: "peer_world",
}


class GatewayMetrics:
    """Counters of one gateway, in a registry of its own."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "stafett_gateway_requests",
            "Requests by kind and by how they ended when the last byte was sent.",
            ["kind", "outcome"],
            registry=self._registry,
        )
        self._bytes = Counter(
            "stafett_gateway_bytes",
            "Content bytes that clients got, by source; those from upstream as far as they were fetched under a claim.",
            ["source"],
            registry=self._registry,
        )
        self._failovers = Counter(
            "stafett_gateway_failovers",
            "Holders left for the next one, by reason.",
            ["reason"],
            registry=self._registry,
        )
        self._quarantined = Counter(
            "stafett_gateway_quarantined",
            "Holders not asked again for a blob for a while, as bytes that they had a part in were wrong.",
            registry=self._registry,
        )
        self._hedges = Counter(
            "stafett_gateway_hedges",
            "Second holders asked because the first byte was late.",
            registry=self._registry,
        )

    def count_request(self, kind: str, outcome: str) -> None:
        """Count one ended request; `outcome` is a value of `exchange.Outcome`."""
        self._requests.labels(kind, outcome).inc()

    def count_bytes(self, source: str, size_bytes: int) -> None:
        """Count bytes sent."""
        self._bytes.labels(source).inc(size_bytes)

    def count_failover(self, reason: str) -> None:
        """Count one holder left."""
        self._failovers.labels(reason).inc()

    def count_quarantined(self, holders: int) -> None:
        """Count holders that may have sent wrong bytes."""
        self._quarantined.inc(holders)

    def count_hedge(self) -> None:
        """Count one second holder asked."""
        self._hedges.inc()

    def render(self) -> bytes:
        """Render the Prometheus text format."""
        return generate_latest(self._registry)
