"""Throughput of a peer hit, beside a registry and a proxy that hand out the same blob.

Rounds are interleaved and medians reported, so that what else the machine does hits all alike. Prints what it is.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from bench import usage
from bench.lone_pull import measure_lone_pulls
from bench.sink import Transfer, answers, fetch
from bench.subjects import Subject, make_blob, start_nginx, start_peers, start_registry
from stafett.cli.local_cluster.cluster import LocalCluster
from stafett.cli.local_cluster.processes import Process, wait_until
from stafett.common.blob_files import blob_path
from tests.e2e.upstream import Upstream

GIB = 1024**3
SETTLE_SECONDS = 3.0
IDLE_SECONDS = 10.0
_FULL = 0.85


@dataclass
class Rounds:
    """What the rounds of one subject gave."""

    transfers: list[Transfer] = field(default_factory=list)
    cpu: dict[str, list[float]] = field(default_factory=dict)
    """CPU seconds by role and round."""
    machine_busy: list[float] = field(default_factory=list)
    """Busy seconds of all cores by round, whoever used them."""

    @property
    def bytes_per_second(self) -> float:
        return median(transfer.bytes_per_second for transfer in self.transfers)

    def cpu_per_gib(self) -> dict[str, float]:
        """CPU seconds per GiB by role, over all rounds together (the clock's tick is too coarse for one)."""
        total = sum(transfer.size_bytes for transfer in self.transfers)
        return {role: sum(seconds) * GIB / total for role, seconds in self.cpu.items()}

    def cores(self) -> dict[str, float]:
        """Cores that each role kept busy while it ran."""
        total = sum(transfer.seconds for transfer in self.transfers)
        return {role: sum(seconds) / total for role, seconds in self.cpu.items()}

    def machine_share(self) -> float:
        """Part of the machine that was busy, 0 to 1."""
        total = sum(transfer.seconds for transfer in self.transfers)
        return sum(self.machine_busy) / total / (os.cpu_count() or 1)


@dataclass(frozen=True)
class Idle:
    """Memory and CPU of the parts while nothing happens."""

    rss_mib: Mapping[str, float]
    cpu_percent: Mapping[str, float]


def main(arguments: list[str]) -> None:
    """Run the benchmark; the last line printed is JSON."""
    parser = argparse.ArgumentParser(prog="python -m bench throughput", description=__doc__)
    parser.add_argument("--mib", type=int, default=1024, help="size of the blob in MiB (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each subject (default: %(default)s)")
    parser.add_argument("--pulls", type=int, default=11, help="cold pulls of each kind (default: %(default)s)")
    options = parser.parse_args(arguments)
    with LocalCluster() as cluster:
        result = _measure(cluster, options.mib * 1024 * 1024, options.rounds, options.pulls)
    print(json.dumps(result))


def _measure(cluster: LocalCluster, size_bytes: int, rounds: int, pulls: int) -> dict[str, object]:
    subjects = _start(cluster, size_bytes)
    peer = subjects[0]
    wait_until(lambda: answers(peer.port, peer.path), "the blob served through a peer")
    idle = measure_idle(peer.processes)
    for role, process in peer.processes.items():
        print(f"idle: {role:8} {idle.rss_mib[role]:6.1f} MiB {idle.cpu_percent[role]:6.2f} % CPU")
        usage.reset_peak(process.pid)
    measured = run_rounds(subjects, rounds)
    peak = {role: usage.peak_rss_mib(process.pid) for role, process in peer.processes.items()}
    for role, mib in peak.items():
        print(f"peak: {role:8} {mib:6.1f} MiB")
    print_comparison(measured)
    for process in (process for subject in subjects[1:] for process in subject.processes.values()):
        process.stop()
    cold = measure_lone_pulls(cluster, pulls)
    mine = measured["peer"]
    cpu = mine.cpu_per_gib()
    print(f"limit: {explain_limit(mine)}")
    return {
        "peer_vs_registry": _ratio(mine, measured.get("registry")),
        "peer_vs_nginx_proxy": _ratio(mine, measured.get("nginx_proxy")),
        "peer_mb_s": round(mine.bytes_per_second / 1e6),
        "cpu_seconds_per_gib": {role: round(cpu[role], 2) for role in ("gateway", "node")},
        "rss_mib": {role: round(peak[role], 1) for role in ("tracker", "node", "gateway")},
        "idle_cpu_percent": {role: round(idle.cpu_percent[role], 2) for role in ("tracker", "node", "gateway")},
        "cold_lone_pull_x": cold and round(cold, 3),
    }


def _start(cluster: LocalCluster, size_bytes: int) -> list[Subject]:
    print(f"blob: {size_bytes / GIB:.2f} GiB, machine: {os.cpu_count()} cores")
    layout = cluster.directory / "made"
    digest = make_blob(layout, size_bytes)
    peer = start_peers(cluster, layout, digest)
    blob = blob_path(cluster.hosts[0].content_root, digest)
    print(f"store of the holder: {'containerd' if cluster.hosts[0].containerd else 'oci-layout'}")
    _warm(blob)
    others = {
        "docker-registry": start_registry(Upstream(cluster.directory / "registry"), cluster.processes, blob),
        "nginx": start_nginx(cluster.processes, cluster.directory / "nginx", blob),
    }
    for name, subject in others.items():
        if subject is None:
            print(f"{name} is not installed: not compared (make deps-e2e installs it)")
    return [peer, *(subject for subject in others.values() if subject)]


def measure_idle(processes: Mapping[str, Process]) -> Idle:
    """Watch processes that have nothing to do for some seconds."""
    time.sleep(SETTLE_SECONDS)
    before = {role: usage.cpu_seconds(process.pid) for role, process in processes.items()}
    time.sleep(IDLE_SECONDS)
    used = {role: usage.cpu_seconds(process.pid) - before[role] for role, process in processes.items()}
    rss = {role: usage.rss_mib(process.pid) for role, process in processes.items()}
    return Idle(rss, {role: 100 * seconds / IDLE_SECONDS for role, seconds in used.items()})


def run_rounds(subjects: Sequence[Subject], rounds: int) -> dict[str, Rounds]:
    """Fetch from all subjects in turn, each round in another order, after one unmeasured fetch each."""
    measured = {subject.name: Rounds() for subject in subjects}
    for subject in subjects:
        fetch(subject.port, subject.path)
    for number in range(rounds):
        turn = number % len(subjects)
        for subject in (*subjects[turn:], *subjects[:turn]):
            _run_one(subject, measured[subject.name])
        speeds = (f"{name} {of.transfers[-1].bytes_per_second / 1e6:.0f}" for name, of in measured.items())
        print(f"round {number + 1}, MB/s: {', '.join(speeds)}")
    return measured


def _run_one(subject: Subject, rounds: Rounds) -> None:
    pids = {role: process.pid for role, process in subject.processes.items()}
    before = {role: usage.cpu_seconds(pid) for role, pid in pids.items()}
    busy = usage.machine_busy_seconds()
    rounds.transfers.append(fetch(subject.port, subject.path))
    rounds.machine_busy.append(usage.machine_busy_seconds() - busy)
    for role, pid in pids.items():
        rounds.cpu.setdefault(role, []).append(usage.cpu_seconds(pid) - before[role])


def print_comparison(measured: Mapping[str, Rounds]) -> None:
    """Print one line for each subject, and one for each of its processes."""
    for name, rounds in measured.items():
        print(f"{name}: median {rounds.bytes_per_second / 1e6:.0f} MB/s, machine {rounds.machine_share():.0%} busy")
        cores = rounds.cores()
        for role, seconds in rounds.cpu_per_gib().items():
            print(f"  {role:12} {seconds:5.2f} CPU s/GiB, {cores[role]:4.0%} of a core")


def explain_limit(rounds: Rounds) -> str:
    """Say what a peer hit is limited by, as far as CPU time tells."""
    role, cores = max(rounds.cores().items(), key=lambda item: item[1])
    if rounds.machine_share() >= _FULL:
        return f"all cores are busy ({rounds.machine_share():.0%}); most of it the {role} ({cores:.0%} of a core)"
    if cores >= _FULL:
        return f"the {role}: {cores:.0%} of a core, while the machine has some left"
    return f"no core is full (the {role} has {cores:.0%}): waiting for each other, not CPU"


def _ratio(mine: Rounds, other: Rounds | None) -> float | None:
    return round(mine.bytes_per_second / other.bytes_per_second, 3) if other else None


def _warm(blob: Path) -> None:
    with blob.open("rb", buffering=0) as file:
        buffer = bytearray(4 * 1024 * 1024)
        while file.readinto(buffer):
            pass
