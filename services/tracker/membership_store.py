"""Nodes, leases and their events in Redis: one slot, so that each change with its fence and its event is one script.

The clock of leases is Redis TIME. Which state follows from which event is told by `liveness`, applied here.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import cast

from stafett.common.cluster import Address, HealthSample, Node, NodeState, Registration
from stafett.common.errors import SessionLost
from stafett.common.topology import Topology
from stafett.tracker.health_score import Experience, Vitals
from stafett.tracker.liveness import Event, moves
from stafett.tracker.proximity import Member
from stafett.tracker.redis_link import RedisLink

_SLOT = "stafett:{members}"
_KEYS = (f"{_SLOT}:leases",)
_LIFTED = f"{_SLOT}:guard-lifted"
_FENCED, _CHANGED = 0, 2
_DUE_MAX = 256
_BROKEN_GRACE_MS = 500
_REPORT_WINDOW_MS = 5_000
_GUARD_MS = 60_000
_GUARD_REST_MS = 15_000
_EVENT_OF_CAUSE = {
    "expired": Event.LEASE_EXPIRED,
    "broke": Event.SESSION_BROKE,
    "late": Event.HEARTBEATS_MISSED,
    "fresh": Event.RECOVERED,
}
_REGISTRATIONS = (Event.STARTED, Event.RESUMED, Event.RESUMED_DRAINED)
_VERDICTS = (Event.SESSION_BROKE, Event.HEARTBEATS_MISSED, Event.REPORTED, Event.LEASE_EXPIRED)
_ORDERS = {Event.DRAIN_ORDERED: 1, Event.DRAIN_REVOKED: 0}
_EVENTS_MAX = 500
_EVENTS_WAIT_MS = 400


@dataclass(frozen=True, slots=True)
class Renewal:
    """A heartbeat to be written."""

    node_id: str
    epoch: int
    health: HealthSample | None


@dataclass(frozen=True, slots=True)
class Experienced:
    """What one gateway met at a node under an epoch: streams that went well, that failed, and for which it was full.

    The means are of the good streams and of those left as slow, 0 when not known.
    """

    node_id: str
    epoch: int
    succeeded: int
    failed: int
    overloaded: int
    first_byte_seconds: float
    seconds_per_mib: float


@dataclass(frozen=True, slots=True)
class Due:
    """Something that should happen to a node, under the epoch that it was seen with."""

    node_id: str
    epoch: int
    event: Event


@dataclass(frozen=True, slots=True)
class Scan:
    """What a scan has found: the data set's marker and revision, Redis' wall clock, and what is due.

    `falling_nodes` are all that would leave READY now, also those that `due` has no place for.
    """

    generation: str
    revision: int
    now_unix_ms: int
    known_nodes: int
    recent_falls: int
    falling_nodes: int
    guarded: bool
    guard_lifted: bool
    due: tuple[Due, ...]


@dataclass(frozen=True, slots=True)
class Change:
    """One event: the node as it is after `revision`; forgotten nodes are to be removed."""

    revision: int
    member: Member
    forgotten: bool


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All nodes at a revision of a generation."""

    generation: str
    revision: int
    members: Mapping[str, Member]


class MembershipStore:
    """Adapter of the membership slot. Every method raises `Unavailable` while Redis is away."""

    def __init__(self, link: RedisLink, lease_ttl_seconds: float, heartbeat_interval_seconds: float) -> None:
        self._link = link
        self._ttl_ms = round(lease_ttl_seconds * 1000)
        interval_ms = round(heartbeat_interval_seconds * 1000)
        # Late: two heartbeats are missing and there was time to move to another tracker. Fresh: just after one.
        self._late_ms = max(1, self._ttl_ms - interval_ms * 11 // 4)
        self._fresh_ms = self._ttl_ms - interval_ms * 5 // 4

    async def grant(self, registration: Registration, *, drain_ordered: bool = False) -> int:
        """Open a session: give it a lease and return its epoch, higher than all before.

        Args:
            drain_ordered: whether this replica remembers an operator's order; counts where Redis has lost the node.
        """
        described = {
            "host": registration.address.host,
            "port": str(registration.address.port),
            "region": registration.topology.region,
            "zone": registration.topology.zone,
            "rack": registration.topology.rack,
            "version": registration.version,
            "labels": json.dumps(dict(registration.labels)),
        }
        words = [word for pair in described.items() for word in pair]
        chosen = [word for event in _REGISTRATIONS for word in (moves(event), event.value)]
        args: list[str | int] = [_fresh(), self._ttl_ms, registration.node_id, f"{registration.incarnation:x}"]
        args += [*chosen, int(drain_ordered), *words]
        return int((await self._link.run("grant", _KEYS, args))[0])

    async def renew(self, renewals: Sequence[Renewal]) -> list[bool]:
        """Renew leases in one script; False for each that is fenced."""
        args: list[str | int] = [self._ttl_ms]
        for renewal in renewals:
            args += [renewal.node_id, renewal.epoch, json.dumps(asdict(renewal.health)) if renewal.health else ""]
        return [bool(flag) for flag in await self._link.run("renew", _KEYS, args)]

    async def change(self, node_id: str, epoch: int, event: Event) -> None:
        """Apply an event of the session; `Event.LEFT` ends its lease too.

        Raises:
            SessionLost: if the session is fenced; nothing has changed then.
        """
        if await self._change(Due(node_id, epoch, event)) == _FENCED:
            raise SessionLost(node_id, epoch)

    async def apply(self, due: Due) -> bool:
        """Apply what a scan found due; True if that changed the node's state, and nobody else had done it before."""
        return await self._change(due) == _CHANGED

    async def _change(self, due: Due) -> int:
        release = int(due.event in (Event.LEFT, Event.LEASE_EXPIRED))
        within: str | int = {Event.LEASE_EXPIRED: 0, Event.HEARTBEATS_MISSED: self._late_ms}.get(due.event, "")
        verdict = int(due.event in _VERDICTS)
        args: list[str | int] = [due.node_id, due.epoch, moves(due.event), due.event.value, release, within]
        args += [_ORDERS.get(due.event, ""), verdict]
        return int((await self._link.run("change", _KEYS, args))[0])

    async def note_broken(self, node_id: str, epoch: int) -> None:
        """Note that a session's stream has broken; unless it is resumed soon, the node becomes suspect."""
        await self._link.run("broke", _KEYS, [node_id, epoch])

    async def report(self, node_ids: Sequence[str], reporter: str) -> list[int]:
        """Note that a gateway met failures; return for each node how many gateways did within the last five seconds."""
        return [int(count) for count in await self._link.run("report", _KEYS, [_REPORT_WINDOW_MS, reporter, *node_ids])]

    async def raise_guard(self) -> None:
        """Hold transitions back for at most a minute, at every replica; after that let them pass for a while."""
        raised = ("SET", f"{_SLOT}:guard", "1", "NX", "PX", _GUARD_MS)
        await self._link.commands([("SET", _LIFTED, "1", "PX", _GUARD_MS + _GUARD_REST_MS), raised])

    async def lift_guard(self) -> None:
        """Let transitions pass again, and do not raise the guard for a while."""
        await self._link.commands([("SET", _LIFTED, "1", "PX", _GUARD_REST_MS), ("DEL", f"{_SLOT}:guard")])

    async def scan(self) -> Scan:
        """Look at the marker, and for nodes whose lease is late, gone or fresh again; nothing is changed yet."""
        args: list[str | int] = [
            _fresh(),
            self._late_ms,
            self._fresh_ms,
            _BROKEN_GRACE_MS,
            Event.REPORTED.value,
            _DUE_MAX,
        ]
        generation, revision, *words = await self._link.run("scan", _KEYS, args)
        now, known, recent, falling, guard = map(int, words[:5])
        rows = words[5:]
        due = tuple(
            Due(str(node_id), int(epoch), _EVENT_OF_CAUSE[str(cause)])
            for node_id, epoch, cause in zip(rows[::3], rows[1::3], rows[2::3], strict=True)
        )
        return Scan(str(generation), int(revision), now, known, recent, falling, guard == 1, guard == 2, due)

    async def snapshot(self) -> Snapshot:
        """Read all nodes at once."""
        generation, revision, *rows = await self._link.run("snapshot", _KEYS, [_fresh()])
        found = [dict(_pairs(cast(Sequence[str], row))) for row in rows]
        members = {row["id"]: _member(row) for row in found if row}
        return Snapshot(str(generation), int(revision), members)

    async def events_after(self, revision: int) -> list[Change]:
        """Wait up to 0.4 s for changes after a revision, and return those there are, in order."""
        words = ("XREAD", "COUNT", _EVENTS_MAX, "BLOCK", _EVENTS_WAIT_MS, "STREAMS", f"{_SLOT}:events", f"{revision}-0")
        [streams] = await self._link.commands([words])
        entries = cast(list[tuple[str, list[tuple[str, dict[str, str]]]]], streams or [])
        return [
            Change(int(entry.partition("-")[0]), _member(fields), "forgotten" in fields)
            for _, found in entries
            for entry, fields in found
        ]

    async def add_experience(self, reports: Sequence[Experienced]) -> None:
        """Add what a gateway met to the averages, in one script; reports of older epochs are dropped."""
        args: list[str | int] = []
        for report in reports:
            counts = (report.succeeded, report.failed, report.overloaded)
            means = (f"{report.first_byte_seconds:.6f}", f"{report.seconds_per_mib:.6f}")
            args += [report.node_id, report.epoch, *counts, *means]
        await self._link.run("experience", _KEYS, args)

    async def vitals(self, node_ids: Sequence[str]) -> Mapping[str, Vitals]:
        """Read how nodes are; those without a lease are left out."""
        rows = await self._link.run("vitals", _KEYS, list(node_ids))
        pairs = zip(node_ids, cast(Sequence[tuple[str, str, str, str]], rows), strict=True)
        return {node_id: self._vitals(*row) for node_id, row in pairs if row[0]}

    def _vitals(self, lease_left_ms: str, sample: str, met: str, met_ms_ago: str) -> Vitals:
        known = json.loads(met) if met else {}
        return Vitals(
            lease_left=int(lease_left_ms) / self._ttl_ms,
            sample=_sample(json.loads(sample)) if sample else None,
            experience=Experience(
                known["success"], known.get("room", 1.0), known["first"], known["pace"], int(met_ms_ago) / 1000
            )
            if known
            else None,
        )

    async def forget(self, node_id: str, epoch: int) -> bool:
        """Forget a node that is down; False if it has come back."""
        return bool((await self._link.run("forget", _KEYS, [node_id, epoch]))[0])

    async def take_turn(self, task: str, seconds: float) -> bool:
        """Ask to be the one replica that does a task during the next seconds."""
        [taken] = await self._link.commands([("SET", f"{_SLOT}:turn:{task}", "1", "NX", "PX", round(seconds * 1000))])
        return bool(taken)


def _sample(known: Mapping[str, float]) -> HealthSample:
    """Read a sample; what a newer replica has added is left out."""
    ours = {field.name for field in fields(HealthSample)}
    return HealthSample(**{name: value for name, value in known.items() if name in ours})  # type: ignore[arg-type]


def _fresh() -> str:
    return secrets.token_hex(8)


def _pairs(words: Sequence[str]) -> Iterator[tuple[str, str]]:
    return zip(words[::2], words[1::2], strict=True)


def _member(fields: Mapping[str, str]) -> Member:
    node = Node(
        id=fields["id"],
        epoch=int(fields["epoch"]),
        address=Address(fields["host"], int(fields["port"])),
        topology=Topology(fields["region"], fields["zone"], fields["rack"]),
        state=NodeState(fields["state"]),
        reason=fields["reason"],
        state_since_unix_ms=int(fields["since"]),
        version=fields["version"],
        sequence=int(fields["sequence"]),
        labels=json.loads(fields["labels"]),
        flaps=int(fields.get("flaps", "0")),
    )
    return Member(node, int(fields["incarnation"], 16), fields.get("ordered") == "1")
