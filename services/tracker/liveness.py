"""Decides what the cluster believes of a node: the only place where states follow from events.

Pure: no clock, no Redis. Redis applies `moves` atomically, so every replica decides alike and each change is made once.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum

from stafett.common.cluster import NodeState

ABSENT = "absent"
"""State of a node that nobody has heard of, as the scripts call it."""
LAG_MAX_SECONDS = 0.2
LAG_MERCY = 4.0
"""A replica that was paused judges nobody for so many times the pause, at most for the time of a lease."""
GUARD_SHARE = 0.3
GUARD_NODES = 4
"""Mass guard: more than this share of all nodes, and at least so many, failing within ten seconds."""


class Event(Enum):
    """What can happen to a node; the value is the reason shown to people."""

    STARTED = "registered"
    RESUMED = "session resumed"
    RESUMED_DRAINED = "drained by an operator before"
    DRAIN_ANNOUNCED = "draining, as it announced"
    DRAIN_REVOKED = "draining revoked"
    LEASE_EXPIRED = "lease expired"
    LEFT = "left after draining"
    DRAIN_ORDERED = "drained by an operator"
    SESSION_BROKE = "session broke"
    HEARTBEATS_MISSED = "heartbeats missed"
    REPORTED = "reported by several gateways, and silent when probed"
    RECOVERED = "recovered"


_TAKES_STREAMS = NodeState.READY
_MOVES: dict[Event, dict[NodeState | None, NodeState]] = {
    Event.STARTED: dict.fromkeys((None, *NodeState), _TAKES_STREAMS),
    Event.RESUMED: {
        None: _TAKES_STREAMS,
        NodeState.READY: _TAKES_STREAMS,
        NodeState.SUSPECT: _TAKES_STREAMS,
        NodeState.DOWN: _TAKES_STREAMS,
        NodeState.DRAINING: NodeState.DRAINING,
    },
    Event.RESUMED_DRAINED: dict.fromkeys((None, *NodeState), NodeState.DRAINING),
    Event.DRAIN_ANNOUNCED: {NodeState.READY: NodeState.DRAINING, NodeState.SUSPECT: NodeState.DRAINING},
    Event.DRAIN_ORDERED: dict.fromkeys((NodeState.READY, NodeState.SUSPECT, NodeState.DRAINING), NodeState.DRAINING),
    Event.DRAIN_REVOKED: {NodeState.DRAINING: NodeState.READY},
    Event.SESSION_BROKE: {NodeState.READY: NodeState.SUSPECT},
    Event.HEARTBEATS_MISSED: {NodeState.READY: NodeState.SUSPECT},
    Event.REPORTED: {NodeState.READY: NodeState.SUSPECT},
    Event.RECOVERED: {NodeState.SUSPECT: NodeState.READY},
    Event.LEASE_EXPIRED: dict.fromkeys((NodeState.READY, NodeState.SUSPECT, NodeState.DRAINING), NodeState.DOWN),
    Event.LEFT: dict.fromkeys((NodeState.READY, NodeState.SUSPECT, NodeState.DRAINING), NodeState.DOWN),
}


def after(state: NodeState | None, event: Event) -> NodeState | None:
    """Tell the state that an event leads to; None is a node that nobody has heard of."""
    return _MOVES[event].get(state, state)


def moves(event: Event) -> str:
    """Write the moves of an event for the scripts: "from=to,from=to"; states not named do not change."""
    return ",".join(f"{state.value if state else ABSENT}={to.value}" for state, to in _MOVES[event].items())


@dataclass(frozen=True, slots=True)
class Judge:
    """Whether a replica may declare leases expired; times are monotonic seconds.

    A replica that has not seen Redis for a while (or has just started) first gives all nodes the time of a lease to
    renew: their heartbeats could not reach Redis either. After a pause of its own it does likewise: what nodes have
    sent meanwhile is yet to be read, and those that left a frozen tracker are on their way to it or to another one.
    """

    lease_ttl_seconds: float
    blind_until: float

    def may_judge(self, now: float) -> bool:
        """Tell whether what a scan finds may be carried out."""
        return now >= self.blind_until

    def lagged(self, now: float, lag_seconds: float) -> Judge:
        """Show mercy as the replica's own loop woke up so much too late."""
        if lag_seconds <= LAG_MAX_SECONDS:
            return self
        mercy = min(self.lease_ttl_seconds, LAG_MERCY * lag_seconds)
        return replace(self, blind_until=max(self.blind_until, now + mercy))

    def missed_scan(self, now: float) -> Judge:
        """Start the time of mercy again, as a scan has failed."""
        return replace(self, blind_until=now + self.lease_ttl_seconds)


def mass_failure(known: int, recent_falls: int, about_to_fall: int) -> bool:
    """Tell whether so many nodes fail at once that the trackers had better doubt themselves.

    Args:
        known: nodes with a lease, and those that lost it within the last ten seconds.
        recent_falls: nodes of these that left READY within the last ten seconds.
        about_to_fall: nodes that would leave it now.
    """
    falling = recent_falls + about_to_fall
    return about_to_fall > 0 and falling >= GUARD_NODES and falling > GUARD_SHARE * known
