"""How long N hosts behind limited links take to pull an image together, against what one copy takes on a link.

Each case has hosts of its own in network namespaces (`tests.relay.bed`), cold stores, and an image of random bytes. S/B
is the image's size over the link's speed: no pull can be quicker.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

from bench.lone_pull import write_plain_hosts
from bench.usage import cpu_seconds, machine_busy_seconds
from stafett.cli.local_cluster.images import MadeImage
from stafett.cli.local_cluster.processes import Process
from stafett.common.errors import StartupFailed
from tests.e2e.bed import PLATFORM, digests_of
from tests.relay.bed import MBIT, Pull, RelayBed, relay_bed

ONE_LAYER: Sequence[int] = [100_000_000]
FOUR_LAYERS: Sequence[int] = [25_000_000] * 4
SPREAD_SECONDS = 5.0
SLOW_SHARE = 0.25


@dataclass(frozen=True)
class Case:
    """What is measured: `spread` has random arrivals, one slow host, and one that is killed."""

    name: str
    layers: Sequence[int]
    hosts: int = 8
    rate_mbit: float = 50.0
    follow: bool = True
    through_stafett: bool = True
    spread: bool = False


@dataclass(frozen=True)
class Figures:
    """Times are multiples of S/B, bytes of the image's size; of healthy hosts only, each from its own start.

    No times if one of these failed: a pull that ends early would look like a quick one.
    """

    last_host_x: float | None
    median_host_x: float | None
    upstream_copies: float
    cross_zone_copies: float
    busy_cores: float
    cpu_seconds_per_gb: float
    failed_pulls: int
    started_within_ms: int


CASES: Mapping[str, Case] = {
    "one_layer": Case("one_layer", ONE_LAYER),
    "four_layers": Case("four_layers", FOUR_LAYERS),
    "arrivals": Case("arrivals", ONE_LAYER, spread=True),
    "star": Case("star", ONE_LAYER, follow=False),
    "plain": Case("plain", ONE_LAYER, through_stafett=False),
    "1 host": Case("1 host", ONE_LAYER, hosts=1),
    "2 hosts": Case("2 hosts", ONE_LAYER, hosts=2),
    "4 hosts": Case("4 hosts", ONE_LAYER, hosts=4),
    "100 Mbit": Case("100 Mbit", ONE_LAYER, rate_mbit=100.0),
}


def main(arguments: list[str]) -> None:
    """Run the cases and print each; the last line is JSON."""
    parser = argparse.ArgumentParser(prog="python -m bench relay", description=__doc__)
    parser.add_argument("--cases", nargs="*", default=list(CASES), choices=list(CASES), metavar="CASE")
    parser.add_argument("--seed", type=int, default=1, help="of arrivals")
    chosen = parser.parse_args(arguments)
    figures: dict[str, Figures] = {}
    for name in chosen.cases:
        figures[name] = measure(CASES[name], chosen.seed)
        print(f"{name:12s} " + ", ".join(f"{key} {value}" for key, value in asdict(figures[name]).items()), flush=True)
    print(json.dumps(summary(figures)))


def summary(figures: Mapping[str, Figures]) -> dict[str, object]:
    """Put the figures into the shape of the last line.

    `hop_ms` is what each host further down a chain takes longer: last of 8 against last of 2, over six hops.
    """
    result: dict[str, object] = {"hosts": 8, "rate_mbit": 50}
    main_case = figures.get("one_layer")
    if main_case:
        result |= {"busy_cores": main_case.busy_cores, "cpu_seconds_per_gb": main_case.cpu_seconds_per_gb}
    two = figures.get("2 hosts")
    if main_case and two and main_case.last_host_x and two.last_host_x:
        seconds = sum(ONE_LAYER) / (50 * MBIT)
        result["hop_ms"] = round((main_case.last_host_x - two.last_host_x) * seconds / 6 * 1000)
    for name, each in figures.items():
        shown = {key: value for key, value in asdict(each).items() if key not in ("busy_cores", "cpu_seconds_per_gb")}
        result[name.replace(" ", "_")] = shown
    return result


def measure(case: Case, seed: int) -> Figures:
    """Run one case on hosts of its own."""
    with (
        tempfile.TemporaryDirectory() as directory,
        relay_bed(Path(directory), hosts=case.hosts, rate_mbit=case.rate_mbit, follow=case.follow) as bed,
    ):
        if not case.through_stafett:
            for host in bed.hosts:
                assert host.containerd is not None
                write_plain_hosts(host.containerd, bed.bed.upstream)
        image = bed.push("bench/app", case.layers)
        least_seconds = image.pulled_bytes(PLATFORM) / (case.rate_mbit * MBIT)
        if not case.follow:
            _give(bed, image)
        rng = random.Random(seed)
        delays = {host.name: rng.uniform(0, SPREAD_SECONDS) for host in bed.hosts} if case.spread else {}
        slow, victim = _unlucky(bed, delays) if case.spread else ("", "")
        parts = _stafett(bed)
        before = {part.pid: cpu_seconds(part.pid) for part in parts}
        busy_before, started_at = machine_busy_seconds(), time.monotonic()
        killer = threading.Thread(target=_kill_later, args=(bed, victim, least_seconds / 2))
        killer.start()
        pulls = bed.pull_all(image, None if case.follow else bed.hosts[1:], delays)
        took = time.monotonic() - started_at
        killer.join()
        healthy = [pull for name, pull in pulls.items() if name not in (slow, victim)]
        failed = _failed(healthy)
        times = [] if failed else [pull.seconds / least_seconds for pull in healthy]
        starts = [pull.started_at - delays.get(name, 0.0) for name, pull in pulls.items()]
        relayed = image.pulled_bytes(PLATFORM) * (case.hosts - 1) / 1e9
        used = sum(cpu_seconds(part.pid) - before[part.pid] for part in parts if part.alive)
        return Figures(
            round(max(times), 3) if times else None,
            round(median(times), 3) if times else None,
            round(bed.upstream_copies(image), 3),
            round(bed.cross_zone_copies(image), 3),
            round((machine_busy_seconds() - busy_before) / took, 2),
            round(used / relayed, 2) if relayed else 0.0,
            failed,
            round((max(starts) - min(starts)) * 1000),
        )


def _give(bed: RelayBed, image: MadeImage) -> None:
    """Let the first host have the image before the others start: without following that is the best there is."""
    pull = bed.pull(bed.hosts[0], image)
    if pull.error:
        raise StartupFailed(f"the first host could not pull: {pull.error}")
    bed.bed.wait_held(bed.hosts[0], digests_of(image))


def _failed(pulls: Sequence[Pull]) -> int:
    for pull in pulls:
        if pull.error:
            print(f"{pull.host}: {pull.error}")
    return sum(1 for pull in pulls if pull.error)


def _unlucky(bed: RelayBed, delays: Mapping[str, float]) -> tuple[str, str]:
    """Choose who is slow and who is killed: the third and the fourth to arrive; the slow one's link is limited."""
    order = sorted(delays, key=lambda name: delays[name])
    slow, victim = order[2], order[3]
    place = next(host.place for host in bed.hosts if host.name == slow)
    bed.network.limit(place, bed.rate_mbit * MBIT * SLOW_SHARE)
    return slow, victim


def _kill_later(bed: RelayBed, victim: str, seconds: float) -> None:
    if victim:
        time.sleep(seconds)
        bed.kill(next(host for host in bed.hosts if host.name == victim))


def _stafett(bed: RelayBed) -> list[Process]:
    """All processes of Stafett, the hosts' and the trackers'."""
    own = [part for host in bed.hosts for part in (host.node, host.gateway) if part is not None]
    return own + [tracker.process for tracker in bed.bed.cluster.trackers]
