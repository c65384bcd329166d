"""What a gateway shows to Prometheus of its present state, read when it is asked for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from prometheus_client import Metric
from prometheus_client.registry import Collector

from stafett.common.metrics import counter, gauge
from stafett.gateway.content import Content
from stafett.gateway.grpc_tracker import GrpcTracker
from stafett.gateway.relay import Relay
from stafett.gateway.seats import Seats


@dataclass(frozen=True, eq=False)
class StateCollector(Collector):
    """Reads the parts of one gateway."""

    tracker: GrpcTracker
    relay: Relay
    seats: Seats
    content: Content

    def collect(self) -> Iterator[Metric]:
        """Read everything; called from the thread of a scrape."""
        yield gauge("stafett_gateway_requests_running", "Requests that run now.", self.content.running)
        yield gauge("stafett_gateway_streams", "Streams from peers that are open now.", self.relay.book.streams_open)
        yield gauge("stafett_gateway_claims", "Blobs that this host fetches from upstream now.", self.seats.claims)
        yield gauge(
            "stafett_gateway_tracker_connected",
            "1 while a tracker tells this gateway of node states.",
            self.tracker.connected,
        )
        yield counter(
            "stafett_gateway_stale_lookups",
            "Lookups of holders answered from this gateway's memory, as no tracker answered.",
            self.relay.locator.stale_lookups,
        )
