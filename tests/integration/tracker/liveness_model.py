"""What the scripts of the membership slot must do, said once more: leases, epochs, states, guard.

Pure. Only the table of `liveness` and its bound for mass failures are the product's own. Times are milliseconds.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from stafett.common.cluster import NodeState
from stafett.tracker.liveness import Event, after, mass_failure
from stafett.tracker.membership_store import Due

TTL, INTERVAL = 4000, 1000
LATE, FRESH = TTL - 2750, TTL - 1250
BROKEN_GRACE, REPORT_WINDOW, FALLS_WINDOW = 500, 5000, 10_000
GUARD, GUARD_REST, GUARD_TURN = 60_000, 15_000, 2000
LISTED_MAX = 3
"""Falls that a scan lists at most, for these tests: so that there are more of them."""
WITHIN = {Event.LEASE_EXPIRED: 0, Event.HEARTBEATS_MISSED: LATE}
HELD_BACK = {Event.LEASE_EXPIRED, Event.HEARTBEATS_MISSED, Event.SESSION_BROKE, Event.REPORTED}


@dataclass
class Known:
    """One node."""

    epoch: int
    incarnation: int
    state: NodeState
    reason: str
    since: int
    deadline: int | None
    ordered: bool
    flaps: int = 0
    sequence: int = 0
    broken_at: int | None = None


@dataclass
class Seen:
    """What a scan has to find."""

    known: int
    recent_falls: int
    falling: int
    fresh: set[Due]
    falls: set[Due]


@dataclass
class Cluster:
    """All nodes, and what the trackers share; `revision` counts what they publish."""

    now: int
    nodes: dict[str, Known] = field(default_factory=dict)
    falls: dict[str, int] = field(default_factory=dict)
    reports: dict[str, dict[str, int]] = field(default_factory=dict)
    guard_until: int = 0
    lifted_until: int = 0
    turn_until: int = 0
    revision: int = 0

    @property
    def guarded(self) -> bool:
        return self.now <= self.guard_until

    @property
    def lifted(self) -> bool:
        return self.now <= self.lifted_until

    def grant(self, node_id: str, incarnation: int, *, remembered: bool) -> int:
        """Open a session; `remembered`: the replica thinks that an operator has ordered the node to drain."""
        old = self.nodes.get(node_id)
        same = old is not None and old.incarnation == incarnation
        ordered = remembered if old is None else same and old.ordered
        event = Event.RESUMED_DRAINED if ordered else Event.RESUMED if same else Event.STARTED
        state = after(old.state if old else None, event)
        assert state is not None
        epoch = max(old.epoch + 1 if old else 1, self.now)
        new = Known(epoch, incarnation, state, event.value, self.now, self.now + TTL, ordered)
        if same and old is not None:
            new.flaps = old.flaps
            if state is old.state:
                new.reason, new.since = old.reason, old.since
        self.nodes[node_id] = new
        self.revision += 1
        return epoch

    def renew(self, node_id: str, epoch: int) -> bool:
        """Renew a lease; False if it is fenced."""
        node = self._live(node_id, epoch)
        if node is not None:
            node.deadline = self.now + TTL
        return node is not None

    def note_broken(self, node_id: str, epoch: int) -> None:
        """Note that a stream broke."""
        node = self._live(node_id, epoch)
        if node is not None and node.broken_at is None:
            node.broken_at = self.now

    def change(self, node_id: str, epoch: int, event: Event) -> bool | None:
        """Apply an event; True if the state changed (or was ordered again), None if it is fenced."""
        node = self._live(node_id, epoch)
        if node is None or node.deadline is None or node.deadline > self.now + WITHIN.get(event, TTL):
            return None
        if event in HELD_BACK and self.guarded:
            return False
        if event in (Event.LEFT, Event.LEASE_EXPIRED):
            node.deadline = node.broken_at = None
        if event in (Event.DRAIN_ORDERED, Event.DRAIN_REVOKED):
            node.ordered = event is Event.DRAIN_ORDERED
        state = after(node.state, event)
        if state is None or (state is node.state and event is not Event.DRAIN_ORDERED):
            return False
        if node.state is NodeState.READY and state in (NodeState.SUSPECT, NodeState.DOWN):
            node.flaps += 1
            self.falls[node_id] = self.now
        node.state, node.reason, node.since = state, event.value, self.now
        node.sequence += 1
        self.revision += 1
        return True

    def report(self, node_ids: Iterable[str], reporter: str) -> list[int]:
        """Note failures; tell how many met some of each node within the window."""
        counts = []
        for node_id in node_ids:
            noted = self.reports.setdefault(node_id, {})
            noted[reporter] = self.now
            counts.append(sum(1 for at in noted.values() if at > self.now - REPORT_WINDOW))
        return counts

    def scan(self) -> Seen:
        """Tell what is due."""
        self.falls = {node_id: at for node_id, at in self.falls.items() if at > self.now - FALLS_WINDOW}
        live = {node_id for node_id, node in self.nodes.items() if node.deadline is not None}
        seen = Seen(len(live | self.falls.keys()), len(self.falls), 0, set(), set())
        for node_id, node in self.nodes.items():
            cause = self._cause(node)
            if cause is Event.RECOVERED:
                seen.fresh.add(Due(node_id, node.epoch, cause))
            elif cause is not None:
                seen.falls.add(Due(node_id, node.epoch, cause))
                seen.falling += node.state is NodeState.READY
        return seen

    def forget(self, node_id: str, epoch: int) -> bool:
        """Forget a node that is down."""
        node = self.nodes.get(node_id)
        if node is None or node.epoch != epoch or node.state is not NodeState.DOWN:
            return False
        del self.nodes[node_id]
        self.revision += 1
        return True

    def judge(self, seen: Seen, listed: Sequence[Due], silent: set[str]) -> None:
        """Do what one replica does after a scan that has `listed` these falls; `silent` nodes do not answer probes."""
        carried_out = sorted(seen.fresh, key=str)
        if self.guarded:
            self._end_guard(listed, silent)
        elif not self.lifted and mass_failure(seen.known, seen.recent_falls, seen.falling):
            self.guard_until = self.now + GUARD
            self.lifted_until = self.now + GUARD + GUARD_REST
        else:
            carried_out += listed
        for due in carried_out:
            self.change(due.node_id, due.epoch, due.event)

    def _end_guard(self, listed: Sequence[Due], silent: set[str]) -> None:
        if not listed or self.now <= self.turn_until:
            return
        self.turn_until = self.now + GUARD_TURN
        if sum(due.node_id in silent for due in listed) * 2 > len(listed):
            self.guard_until, self.lifted_until = 0, self.now + GUARD_REST

    def _live(self, node_id: str, epoch: int) -> Known | None:
        node = self.nodes.get(node_id)
        return node if node is not None and node.epoch == epoch and node.deadline is not None else None

    def _cause(self, node: Known) -> Event | None:
        """What time has done to a node; the gravest first."""
        if node.deadline is None:
            return None
        if node.deadline <= self.now:
            return Event.LEASE_EXPIRED
        if node.state is NodeState.SUSPECT:
            fresh = node.deadline > self.now + FRESH and node.broken_at is None
            return Event.RECOVERED if fresh and node.reason != Event.REPORTED.value else None
        if node.state is not NodeState.READY:
            return None
        if node.broken_at is not None and node.broken_at <= self.now - BROKEN_GRACE:
            return Event.SESSION_BROKE
        return Event.HEARTBEATS_MISSED if node.deadline <= self.now + LATE else None
