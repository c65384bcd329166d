"""CPU time and memory of processes, as /proc tells them."""

from __future__ import annotations

import os
from pathlib import Path

_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
_RESET_PEAK = "5"


def cpu_seconds(pid: int) -> float:
    """CPU time that all threads of a process have used so far, user and system."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS_PER_SECOND


def rss_mib(pid: int) -> float:
    """Resident memory now, in MiB."""
    return _status_mib(pid, "VmRSS")


def peak_rss_mib(pid: int) -> float:
    """Highest resident memory since the start or `reset_peak`, in MiB."""
    return _status_mib(pid, "VmHWM")


def reset_peak(pid: int) -> None:
    """Start the watch for the peak anew."""
    Path(f"/proc/{pid}/clear_refs").write_text(_RESET_PEAK)


def machine_busy_seconds() -> float:
    """CPU time that the whole machine has spent busy since boot, summed over its cores."""
    fields = [int(field) for field in Path("/proc/stat").read_text().splitlines()[0].split()[1:]]
    user, nice, system, _idle, _iowait, irq, softirq = fields[:7]
    return (user + nice + system + irq + softirq) / _TICKS_PER_SECOND


def _status_mib(pid: int, key: str) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) / 1024
    return 0.0
