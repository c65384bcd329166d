"""What a tracker shows to Prometheus: its view of the cluster, read when it is asked for.

Every replica shows the whole cluster, so take the maximum over them and not the sum; sessions, watchers, lookups and
trees are each replica's own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from prometheus_client import Metric
from prometheus_client.registry import Collector

from stafett.common.cluster import Node, NodeState
from stafett.common.metrics import counter, counters, gauge, gauges
from stafett.tracker.fellows import Fellows
from stafett.tracker.housekeeping import Housekeeping
from stafett.tracker.liveness import Event
from stafett.tracker.membership import Membership
from stafett.tracker.redis_link import RedisLink
from stafett.tracker.relays import Relays
from stafett.tracker.servicer import TrackerServicer

LEFT = "left"
"""A node that is DOWN because it drained and left is no failure."""


@dataclass(frozen=True, eq=False)
class TrackerCollector(Collector):
    """Reads the parts of one tracker."""

    link: RedisLink
    membership: Membership
    housekeeping: Housekeeping
    relays: Relays
    fellows: Fellows
    servicer: TrackerServicer

    def collect(self) -> Iterator[Metric]:
        """Read everything; called from the thread of a scrape."""
        nodes = dict.fromkeys((*(state.value for state in NodeState), LEFT), 0)
        nodes.update(Counter(_state(member.node) for member in list(self.membership.members.values())))
        yield gauges(
            "stafett_tracker_nodes",
            "Nodes by what the cluster believes of them; down: the lease has run out, left: it drained and went.",
            "state",
            nodes,
        )
        yield gauge(
            "stafett_tracker_mass_guard",
            "1 while the trackers doubt themselves, as many nodes seem to fail at once.",
            self.housekeeping.guarded,
        )
        yield counter(
            "stafett_tracker_mass_guard_raised",
            "How often this replica has raised the mass guard, which may be up for less than a second.",
            self.housekeeping.guards_raised,
        )
        yield gauge("stafett_tracker_redis_available", "1 while Redis answers.", self.link.available)
        yield gauge("stafett_tracker_replicas", "Trackers alive, this one included.", self.fellows.live)
        yield counters(
            "stafett_tracker_lookups",
            "Lookups of holders; stale: answered from memory, as Redis was away or empty.",
            "answer",
            self.servicer.lookups,
        )
        yield gauge("stafett_tracker_sessions", "Nodes with a session at this replica.", self.servicer.sessions)
        yield gauge("stafett_tracker_watchers", "Gateways that watch at this replica.", self.membership.watchers)
        yield gauge(
            "stafett_tracker_trees", "Blobs that spread now, as far as this replica decides.", self.relays.trees
        )


def _state(node: Node) -> str:
    return LEFT if node.state is NodeState.DOWN and node.reason == Event.LEFT.value else node.state.value
