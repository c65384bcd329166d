"""What a node shows to Prometheus: read from its parts when it is asked for, so that streams do not count twice."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from prometheus_client import Metric
from prometheus_client.registry import Collector

from stafett.common.metrics import counter, counters, gauge
from stafett.node.admission import StreamSlots
from stafett.node.health import Tally
from stafett.node.indexer import Indexer


@dataclass(frozen=True, eq=False)
class NodeCollector(Collector):
    """Reads the parts of one node."""

    slots: StreamSlots
    tally: Tally
    indexer: Indexer
    registered: Callable[[], bool]

    def collect(self) -> Iterator[Metric]:
        """Read everything; called from the thread of a scrape."""
        slots, tally, indexer = self.slots, self.tally, self.indexer
        unfinished = tally.sent_unfinished_bytes
        refused = {"full": slots.refused_full, "draining": slots.refused_draining}
        served = {"finished": tally.sent_bytes - unfinished, "growing": unfinished}
        yield gauge("stafett_node_streams", "Streams to peers that run now.", slots.taken)
        yield gauge("stafett_node_streams_max", "Streams that may run at once.", slots.limit)
        yield counters("stafett_node_refused_streams", "Streams refused, by reason.", "reason", refused)
        yield counters(
            "stafett_node_served_bytes",
            "Bytes sent to peers, of blobs that are finished or were still growing.",
            "blob",
            served,
        )
        yield counter("stafett_node_disk_errors", "Reads of blobs that failed.", tally.disk_errors)
        yield gauge("stafett_node_held_blobs", "Complete blobs that this node shares.", indexer.held_blobs)
        yield gauge("stafett_node_held_bytes", "Bytes of the complete blobs that this node shares.", indexer.held_bytes)
        yield gauge(
            "stafett_node_condemned_blobs",
            "Blobs in the store that are not shared, as their bytes are wrong.",
            indexer.condemned_blobs,
        )
        yield gauge(
            "stafett_node_listing_age_seconds",
            "Time since the store was last listed as a whole.",
            time.monotonic() - indexer.listed_at,
        )
        yield gauge("stafett_node_store_available", "1 while the content store answers.", indexer.store_available)
        yield gauge("stafett_node_session_open", "1 while a tracker has this node's session.", self.registered())
        yield gauge("stafett_node_draining", "1 while no new streams are taken, as the node leaves.", slots.draining)
