"""How good a source a node is: one number out of what it says, what gateways met, and how steady it was. Pure.

The score is the weighted geometric mean of six components, all in [0, 1]: with weights w, prod(c ** (w / sum(w))). So
one component near 0 is enough to make a bad source, which a sum would hide.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from stafett.common.cluster import HealthSample, HealthScore

DEFAULT_WEIGHTS: Mapping[str, float] = {
    "heartbeat": 1.0,
    "load": 1.0,
    "disk": 1.0,
    "outcomes": 2.0,
    "speed": 1.0,
    "stability": 1.0,
}
COMPONENT_FLOOR = 0.01
FORGIVING_SECONDS = 60.0
"""Failures weigh half as much after 0.7 of this time: a node that nobody asks any more becomes worth asking again."""
DISK_SCARCE_SHARE = 0.1
DISK_ERRORS_HALF = 10.0
STEADY_SECONDS = 60.0
FLAP_FACTOR = 0.8
USUAL_MIB = 8.0


@dataclass(frozen=True, slots=True)
class Experience:
    """What gateways met at a node, as moving averages.

    `success` is the share of streams that did not fail, `room` that of asks that found a slot; seconds: 0 if not known.
    """

    success: float = 1.0
    room: float = 1.0
    first_byte_seconds: float = 0.0
    seconds_per_mib: float = 0.0
    age_seconds: float = 0.0

    @property
    def usual_seconds(self) -> float:
        """Seconds that a blob of 8 MiB takes; 0 if not known."""
        return self.first_byte_seconds + USUAL_MIB * self.seconds_per_mib if self.seconds_per_mib else 0.0

    def forgiven(self, share: float) -> float:
        """Tell what a share, as it was, is worth after the time since."""
        return 1.0 - (1.0 - share) * math.exp(-self.age_seconds / FORGIVING_SECONDS)


@dataclass(frozen=True, slots=True)
class Vitals:
    """All that is known of a node's health; `lease_left` is the share of its lease that is left, 0 to 1."""

    lease_left: float = 1.0
    sample: HealthSample | None = None
    experience: Experience | None = None
    flaps: int = 0


def score(vitals: Vitals, usual_seconds: float, weights: Mapping[str, float]) -> HealthScore:
    """Rate a node.

    Args:
        usual_seconds: the median of `Experience.usual_seconds` over all nodes that were measured; 0 without any.
        weights: by component, as in `DEFAULT_WEIGHTS`; a component without a weight does not count.
    """
    experience = vitals.experience or Experience()
    components = {
        "heartbeat": min(1.0, max(0.0, vitals.lease_left) / 0.6),
        "load": min(_load(vitals.sample), experience.forgiven(experience.room)),
        "disk": _disk(vitals.sample),
        "outcomes": experience.forgiven(experience.success),
        "speed": _speed(experience.usual_seconds, usual_seconds),
        "stability": _stability(vitals.sample, vitals.flaps),
    }
    total_weight = sum(weights.values())
    logs = (weights.get(name, 0.0) * math.log(max(COMPONENT_FLOOR, value)) for name, value in components.items())
    total = math.exp(sum(logs) / total_weight) if total_weight else 1.0
    return HealthScore(total, components, experience.first_byte_seconds, experience.seconds_per_mib)


def _load(sample: HealthSample | None) -> float:
    """Free share of the stream slots; full processors take half."""
    if sample is None:
        return 1.0
    streams = sample.active_streams / sample.stream_limit if sample.stream_limit else 0.0
    return max(0.0, 1.0 - max(streams, sample.cpu_busy / 2))


def _disk(sample: HealthSample | None) -> float:
    """Falls below a tenth of free space, halves at ten failed reads; 0 while the store does not answer."""
    if sample is None:
        return 1.0
    if not sample.store_available:
        return 0.0
    free = sample.disk_free_bytes / sample.disk_size_bytes if sample.disk_size_bytes else 1.0
    return min(1.0, free / DISK_SCARCE_SHARE) * DISK_ERRORS_HALF / (DISK_ERRORS_HALF + sample.disk_errors)


def _speed(seconds: float, usual: float) -> float:
    if not seconds or not usual:
        return 1.0
    return min(1.0, usual / seconds)


def _stability(sample: HealthSample | None, flaps: int) -> float:
    """Half at the start, nearly whole after minutes; a fifth less for each fall."""
    uptime = max(0.0, sample.uptime_seconds) if sample else 0.0
    return (STEADY_SECONDS + 2 * uptime) / (2 * STEADY_SECONDS + 2 * uptime) * FLAP_FACTOR ** min(flaps, 20)
