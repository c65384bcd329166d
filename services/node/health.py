"""What the node says of its own health with each heartbeat."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from stafett.common.cluster import HealthSample


@dataclass
class Tally:
    """Counters that the streams feed."""

    sent_bytes: int = 0
    sent_unfinished_bytes: int = 0
    """Those of `sent_bytes` that came out of downloads under way."""
    disk_errors: int = 0


@dataclass
class HealthProbe:
    """Takes samples; safe to call from the session's thread."""

    disk: Path
    stream_limit: int
    active_streams: Callable[[], int]
    store_available: Callable[[], bool]
    held_bytes: Callable[[], int]
    tally: Tally
    _started_at: float = field(default_factory=time.monotonic)
    _last_cpu: tuple[float, float] = (0.0, 0.0)

    def sample(self) -> HealthSample:
        """Take one sample; figures that the host does not give are 0."""
        free, size = self._disk_bytes()
        return HealthSample(
            active_streams=self.active_streams(),
            stream_limit=self.stream_limit,
            cpu_busy=self._cpu_busy(),
            disk_free_bytes=free,
            disk_size_bytes=size,
            disk_errors=self.tally.disk_errors,
            sent_bytes=self.tally.sent_bytes,
            uptime_seconds=time.monotonic() - self._started_at,
            store_available=self.store_available(),
            held_bytes=self.held_bytes(),
        )

    def _disk_bytes(self) -> tuple[int, int]:
        try:
            usage = shutil.disk_usage(self.disk)
        except OSError:
            return 0, 0
        return usage.free, usage.total

    def _cpu_busy(self) -> float:
        """Busy share of the host's processors since the last sample, from /proc/stat."""
        try:
            fields = [float(word) for word in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
        except (OSError, ValueError, IndexError):
            return min(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))
        total, idle = sum(fields), fields[3] + fields[4]
        last_total, last_idle = self._last_cpu
        self._last_cpu = (total, idle)
        if total <= last_total:
            return 0.0
        return min(1.0, max(0.0, 1.0 - (idle - last_idle) / (total - last_total)))
