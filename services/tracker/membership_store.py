"""Nodes, leases and their events in Redis: one slot, so that each change with its fence and its event is one script.

The clock of leases is Redis TIME. Which state follows from which event is told by `liveness`, applied here.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import cast

from stafett.common.cluster import Address, HealthSample, Node, NodeState
from stafett.common.errors import SessionLost
from stafett.common.topology import Topology
from stafett.tracker.liveness import Event, moves
from stafett.tracker.proximity import Member
from stafett.tracker.redis_link import RedisLink

_SLOT = "stafett:{members}"
_KEYS = (f"{_SLOT}:leases",)
_EXPIRED_MAX = 256
_EVENTS_MAX = 500
_EVENTS_WAIT_MS = 400


@dataclass(frozen=True, slots=True)
class Registration:
    """What a node says of itself when it opens a session."""

    node_id: str
    incarnation: int
    address: Address
    topology: Topology
    labels: Mapping[str, str]
    version: str


@dataclass(frozen=True, slots=True)
class Renewal:
    """A heartbeat to be written."""

    node_id: str
    epoch: int
    health: HealthSample | None


@dataclass(frozen=True, slots=True)
class Scan:
    """What a scan has found: the data set's marker, the newest revision, Redis' wall clock, the nodes it took down."""

    generation: str
    revision: int
    now_unix_ms: int
    expired: tuple[str, ...]


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

    def __init__(self, link: RedisLink, lease_ttl_seconds: float) -> None:
        self._link = link
        self._ttl_ms = round(lease_ttl_seconds * 1000)

    async def grant(self, registration: Registration) -> int:
        """Open a session: give it a lease and return its epoch, higher than all before."""
        fields = {
            "host": registration.address.host,
            "port": str(registration.address.port),
            "region": registration.topology.region,
            "zone": registration.topology.zone,
            "rack": registration.topology.rack,
            "version": registration.version,
            "labels": json.dumps(dict(registration.labels)),
        }
        words = [word for pair in fields.items() for word in pair]
        chosen = (moves(Event.RESUMED), moves(Event.STARTED), Event.STARTED.value)
        head = (_fresh(), self._ttl_ms, registration.node_id, f"{registration.incarnation:x}", *chosen)
        return int((await self._link.run("grant", _KEYS, [*head, *words]))[0])

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
        release = int(event is Event.LEFT)
        if not (await self._link.run("change", _KEYS, [node_id, epoch, moves(event), event.value, release]))[0]:
            raise SessionLost(node_id, epoch)

    async def scan(self, *, judge: bool) -> Scan:
        """Look at the marker and, if allowed to judge, take down the nodes whose lease has run out."""
        event = Event.LEASE_EXPIRED
        args: list[str | int] = [_fresh(), int(judge), moves(event), event.value, _EXPIRED_MAX]
        generation, revision, now, *expired = await self._link.run("scan", _KEYS, args)
        return Scan(str(generation), int(revision), int(now), tuple(map(str, expired)))

    async def snapshot(self) -> Snapshot:
        """Read all nodes at once."""
        generation, revision, *rows = await self._link.run("snapshot", _KEYS, [_fresh()])
        fields = [dict(_pairs(cast(Sequence[str], row))) for row in rows]
        members = {row["id"]: _member(row) for row in fields if row}
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

    async def health(self) -> Mapping[str, HealthSample]:
        """Read the last health sample of each live node."""
        [samples] = await self._link.commands([("HGETALL", f"{_SLOT}:health")])
        texts = cast(dict[str, str], samples)
        return {node_id: HealthSample(**json.loads(text)) for node_id, text in texts.items() if text}

    async def forget(self, node_id: str, epoch: int) -> bool:
        """Forget a node that is down; False if it has come back."""
        return bool((await self._link.run("forget", _KEYS, [node_id, epoch]))[0])

    async def take_turn(self, task: str, seconds: float) -> bool:
        """Ask to be the one replica that does a task during the next seconds."""
        [taken] = await self._link.commands([("SET", f"{_SLOT}:turn:{task}", "1", "NX", "PX", round(seconds * 1000))])
        return bool(taken)


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
    )
    return Member(node, int(fields["incarnation"], 16))
