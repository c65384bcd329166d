"""Where hosts stand, and how far apart two of them are."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum


class Tier(IntEnum):
    """Distance between two hosts, nearest first."""

    HOST = 0
    RACK = 1
    ZONE = 2
    REGION = 3
    WORLD = 4


@dataclass(frozen=True, slots=True, order=True)
class Topology:
    """Place of a host. Empty fields are allowed and equal each other, so an unlabelled cluster is one rack."""

    region: str = ""
    zone: str = ""
    rack: str = ""


def tier_between(a: Topology, b: Topology) -> Tier:
    """Tell the distance of two different hosts; never `Tier.HOST`, which only the caller can know."""
    if a.region != b.region:
        return Tier.WORLD
    if a.zone != b.zone:
        return Tier.REGION
    return Tier.RACK if a.rack == b.rack else Tier.ZONE
