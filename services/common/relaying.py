"""What hosts and trackers tell each other of a blob that is spreading; see `Relay` in tracker.proto."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Phase(Enum):
    """What a host is doing with a blob, see `RelayPhase`."""

    ENTER = 1
    STAY = 2
    DONE = 3
    LEAVE = 4


class Left(Enum):
    """Why a host has turned away from a parent."""

    FAILED = 1
    """It refused, broke, fell silent or sent wrong bytes."""
    IDLE = 2
    """It lives, but had nothing new for long."""
    DECLINED = 3
    """It was too slow, full, or is on its way out of service."""


@dataclass(frozen=True, slots=True)
class Received:
    """What there is of a blob: full size (0: not known), bytes from the start, open downloads (0: it is whole)."""

    size_bytes: int
    available_bytes: int
    open_ingests: int


@dataclass(frozen=True, slots=True)
class Fetch:
    """Get the bytes from upstream, alone, under the claim with this token."""

    token: int


@dataclass(frozen=True, slots=True)
class Wait:
    """Ask again: the first bytes are awaited."""


@dataclass(frozen=True, slots=True)
class Refused:
    """Get the bytes elsewhere."""

    reason: str
