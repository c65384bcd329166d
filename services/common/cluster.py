"""What the parts of Stafett tell each other about nodes, blobs and images, free of any transport.

`wire` translates these to and from the protobuf messages.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum

from stafett.common.digest import Digest
from stafett.common.errors import RequestInvalid
from stafett.common.topology import Topology

_NODE_ID = re.compile(r"[A-Za-z0-9._-]{1,253}")


class NodeState(Enum):
    """What the cluster believes of a node, see `NodeState` in types.proto."""

    READY = "ready"
    SUSPECT = "suspect"
    DRAINING = "draining"
    DOWN = "down"


@dataclass(frozen=True, slots=True)
class Address:
    """Host (IP address or DNS name, no brackets) and TCP port of a service."""

    host: str
    port: int

    def target(self) -> str:
        """Format as a gRPC target or URL authority; IPv6 addresses get brackets."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @classmethod
    def of_target(cls, target: str) -> Address:
        """Parse what `target` gives."""
        host, _, port = target.rpartition(":")
        return cls(host.strip("[]"), int(port))


@dataclass(frozen=True, slots=True)
class HealthSample:
    """What a node says of itself; units as in types.proto."""

    active_streams: int = 0
    stream_limit: int = 0
    cpu_busy: float = 0.0
    disk_free_bytes: int = 0
    disk_size_bytes: int = 0
    disk_errors: int = 0
    sent_bytes: int = 0
    uptime_seconds: float = 0.0
    store_available: bool = True
    held_bytes: int = 0


@dataclass(frozen=True, slots=True)
class HealthScore:
    """How good a source a node is, 0 to 1: the total and its components by name. How is decided by the tracker.

    Seconds to the first byte and per MiB are what gateways measured, 0 when none has.
    """

    total: float
    components: Mapping[str, float] = field(default_factory=dict)
    first_byte_seconds: float = 0.0
    seconds_per_mib: float = 0.0


@dataclass(frozen=True, slots=True)
class Node:
    """A registered node and the cluster's belief about it. Of two descriptions the higher `rank` wins."""

    id: str
    epoch: int
    address: Address
    topology: Topology = field(default_factory=Topology)
    state: NodeState = NodeState.READY
    reason: str = ""
    state_since_unix_ms: int = 0
    version: str = ""
    sequence: int = 0
    labels: Mapping[str, str] = field(default_factory=dict)
    health: HealthSample | None = None
    score: HealthScore | None = None
    blob_count: int = 0
    flaps: int = 0

    @property
    def rank(self) -> tuple[int, int]:
        """Order of descriptions of one node: (epoch, sequence)."""
        return (self.epoch, self.sequence)


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
class HeldBlob:
    """A blob on a node."""

    digest: Digest
    size_bytes: int


@dataclass(frozen=True, slots=True)
class HeldImage:
    """An image name on a node; `updated_at_unix_ms` is when the node last pulled or tagged it."""

    name: str
    target: Digest
    target_media_type: str
    target_size_bytes: int
    content_bytes: int
    complete: bool
    updated_at_unix_ms: int


@dataclass(frozen=True, slots=True)
class Announcement:
    """Changes of what a node holds; `reset` makes everything void that was announced before."""

    reset: bool = False
    holds: tuple[HeldBlob, ...] = ()
    withdraws: tuple[Digest, ...] = ()
    images: tuple[HeldImage, ...] = ()
    withdrawn_images: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Holder:
    """A node with a blob."""

    node: Node
    size_bytes: int


def in_service(holders: Iterable[Holder]) -> list[Holder]:
    """Keep the READY ones, or, where none is, the SUSPECT ones: a doubt about all must not read as "nobody has it"."""
    by_state: dict[NodeState, list[Holder]] = {}
    for holder in holders:
        by_state.setdefault(holder.node.state, []).append(holder)
    return by_state.get(NodeState.READY) or by_state.get(NodeState.SUSPECT, [])


@dataclass(frozen=True, slots=True)
class ImageSummary:
    """One image name in the cluster, see `ImageSummary` in tracker.proto."""

    name: str
    target: Digest
    content_bytes: int
    complete_node_ids: tuple[str, ...]
    other_node_ids: tuple[str, ...]
    updated_at_unix_ms: int


def check_node_id(text: str) -> str:
    """Return text if it is a node id.

    Raises:
        RequestInvalid: for anything but 1 to 253 of a-z, A-Z, 0-9, '.', '_', '-'.
    """
    if not _NODE_ID.fullmatch(text):
        raise RequestInvalid("node_id", "must be 1 to 253 characters of a-z, A-Z, 0-9, '.', '_', '-'")
    return text
