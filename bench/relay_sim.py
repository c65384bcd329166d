"""The relay with thousands of hosts: the trackers' own decisions on modelled links.

Time goes in steps. A sender's link is shared evenly by its followers, a receiver gets at most what its link takes and
what its parent had one hop earlier. Hosts ask as gateways do: on arrival, when a parent fails (after 0.2 s), and every
so often while they receive; those who wait ask again when the first byte is there, which takes upstream 0.1 s.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median

from stafett.common.relaying import Fetch, Left, Phase
from stafett.common.topology import Topology
from stafett.tracker.relay_decision import Answer, Ask, Follow, View, decide, stay_seconds
from stafett.tracker.relay_placement import hop_seconds
from stafett.tracker.relay_tree import Tree

GBIT = 125_000_000.0
MB = 1_000_000
GIB = 1024**3
UPSTREAM = "upstream"
FIRST_BYTE_SECONDS = 0.1
NOTICE_SECONDS = 0.2
OUT_OF_SERVICE_SECONDS = 0.5
STEPS = 250
SLOW_SHARE = 0.25
LIMIT_X = 60.0


@dataclass(frozen=True)
class Case:
    """One run. `failing` and `slow` are shares of the hosts; links carry `link` bytes/s each way."""

    name: str
    hosts: int
    size: int
    zones: int = 3
    spread_seconds: float = 0.0
    link: float = GBIT
    upstream: float = GBIT
    failing: float = 0.0
    slow: float = 0.0
    hop: float = hop_seconds(GBIT)


@dataclass(frozen=True)
class Result:
    """What came out; times of hosts that neither fail nor are slow, from the first arrival."""

    completion_seconds: float
    completion_x: float
    median_x: float
    upstream_copies: float
    cross_zone_copies: float
    unfinished: int
    depth: int
    decide_seconds: float


@dataclass
class Host:
    """One host's pull."""

    name: str
    place: Topology
    link: float
    arrives_at: float
    fails_at: float = float("inf")
    received: float = 0.0
    parent: str = ""
    token: int = 0
    moves_at: float = 0.0
    asks_at: float = 0.0
    waits: bool = False
    left: dict[str, Left] = field(default_factory=dict)
    finished_at: float = 0.0
    slow: bool = False


class Simulation:
    """One case, run by `run`."""

    def __init__(self, case: Case, seed: int = 1, *, follow: bool = True) -> None:
        rng = random.Random(seed)
        self.case = case
        self.follow = follow
        self.least = case.size / min(case.link, case.upstream)
        self.step = min(max(self.least / STEPS, 0.002), case.hop)
        self.hosts: dict[str, Host] = {}
        for number in range(case.hosts):
            place = Topology("eu", f"z{number % case.zones}", f"r{number % (case.zones * 20)}")
            self.hosts[f"n{number}"] = Host(f"n{number}", place, case.link, rng.uniform(0, case.spread_seconds))
        unlucky = rng.sample(sorted(self.hosts), round(case.hosts * (case.failing + case.slow)))
        for name in unlucky[: round(case.hosts * case.failing)]:
            self.hosts[name].fails_at = rng.uniform(0.1, 1.5) * self.least
        for name in unlucky[round(case.hosts * case.failing) :]:
            self.hosts[name].slow = True
            self.hosts[name].link = case.link * SLOW_SHARE
        self.tree = Tree()
        self.now = 0.0
        self.upstream_bytes = self.cross_bytes = self.decide_seconds = 0.0
        self.past: deque[dict[str, float]] = deque(maxlen=max(1, round(case.hop / self.step)))

    def run(self) -> Result:
        """Go on until every host that can has the blob, or for too long."""
        while self.now < LIMIT_X * self.least + self.case.spread_seconds + 10 and self._goes_on():
            self._talk()
            self._move()
            self.now += self.step
        healthy = [host for host in self.hosts.values() if not host.slow and host.fails_at == float("inf")]
        ends = [host.finished_at for host in healthy if host.finished_at]
        return Result(
            round(max(ends), 3),
            round(max(ends) / self.least, 2),
            round(median(ends) / self.least, 2),
            round(self.upstream_bytes / self.case.size, 3),
            round(self.cross_bytes / self.case.size / max(1, self.case.zones - 1), 3),
            len(healthy) - len(ends),
            self.depth,
            round(self.decide_seconds, 2),
        )

    depth = 0

    def _goes_on(self) -> bool:
        return any(not host.finished_at and host.fails_at > self.now for host in self.hosts.values())

    def _alive(self, name: str) -> bool:
        return self.hosts[name].fails_at > self.now

    def _talk(self) -> None:
        """Let everybody who has something to say say it, all at this moment."""
        asks = [ask for host in self.hosts.values() if self._alive(host.name) and (ask := self._ask_of(host))]
        if not asks:
            return
        view = View(self.now + 1000, lambda name: self._believed(name), {}, (), self.case.link)
        before = time.perf_counter()
        answers = decide(self.tree, asks, view)
        self.decide_seconds += time.perf_counter() - before
        for name, answer in answers.items():
            self._take(self.hosts[name], answer)

    def _believed(self, name: str) -> bool:
        return self.hosts[name].fails_at + OUT_OF_SERVICE_SECONDS > self.now

    def _ask_of(self, host: Host) -> Ask | None:
        if host.finished_at or host.arrives_at > self.now or host.asks_at > self.now:
            return None
        parent = self.hosts.get(host.parent)
        if parent is not None and parent.fails_at <= self.now:
            if parent.fails_at + NOTICE_SECONDS > self.now:
                return None
            host.left[host.parent] = Left.FAILED
            host.parent = ""
        phase = Phase.STAY if host.parent else Phase.ENTER
        if host.received >= self.case.size:
            host.finished_at, phase = self.now, Phase.DONE
        own_parent = host.parent if host.parent != UPSTREAM else ""
        return Ask(
            host.name, host.place, phase, int(host.received), self.case.size, True, own_parent, host.token, host.left
        )

    def _take(self, host: Host, answer: Answer) -> None:
        host.waits = False
        host.asks_at = self.now + stay_seconds(self.tree)
        if isinstance(answer, Fetch):
            if host.parent != UPSTREAM:
                host.moves_at = self.now + FIRST_BYTE_SECONDS
            host.parent, host.token = UPSTREAM, answer.token
            host.asks_at = self.now + (1.0 if host.received else self.step)
        elif isinstance(answer, Follow):
            if host.parent != answer.parent:
                host.moves_at = self.now + self.case.hop
                self.depth = max(self.depth, 1 + len(answer.ancestors))
            host.parent = answer.parent
        elif not host.finished_at:
            host.waits = True
            host.asks_at = self.now + self.step

    def _move(self) -> None:
        """Let bytes flow for one step."""
        senders: dict[str, int] = {}
        for host in self.hosts.values():
            if self._flows(host):
                senders[host.parent] = senders.get(host.parent, 0) + 1
        self.past.append({host.name: host.received for host in self.hosts.values()})
        earlier = self.past[0]
        for host in self.hosts.values():
            if self._flows(host):
                self._receive(host, senders[host.parent], earlier)

    def _receive(self, host: Host, sharing: int, earlier: dict[str, float]) -> None:
        """Give a host what comes in one step from a sender that so many share."""
        limit = self.case.upstream if host.parent == UPSTREAM else self.hosts[host.parent].link
        there = float(self.case.size)
        if host.parent != UPSTREAM:
            there = earlier.get(host.parent, 0.0) if self._passes_on(host.parent) else 0.0
        moved = max(0.0, min(min(host.link, limit / sharing) * self.step, there - host.received))
        host.received += moved
        if host.received >= self.case.size:
            host.asks_at = self.now  # gateways tell the end at once
        if host.parent == UPSTREAM:
            self.upstream_bytes += moved
        elif self.hosts[host.parent].place.zone != host.place.zone:
            self.cross_bytes += moved

    def _passes_on(self, name: str) -> bool:
        return self.follow or self.hosts[name].received >= self.case.size

    def _flows(self, host: Host) -> bool:
        if not host.parent or host.received >= self.case.size or host.moves_at > self.now or not self._alive(host.name):
            return False
        return host.parent == UPSTREAM or self._alive(host.parent)


CASES: Sequence[Case] = [
    *(Case(f"{hosts} hosts, 1 GiB", hosts, GIB) for hosts in (10, 100, 1000, 5000)),
    Case("1000, one zone", 1000, GIB, zones=1),
    Case("1000, 5 s of arrivals", 1000, GIB, spread_seconds=5.0),
    Case("1000, slow upstream", 1000, GIB, upstream=GBIT / 10),
    Case("1000, 5 % fail", 1000, GIB, failing=0.05),
    Case("1000, 10 % fail", 1000, GIB, failing=0.1),
    Case("1000, 10 % slow", 1000, GIB, slow=0.1),
    *(Case(f"1000, {size // MB} MB", 1000, size) for size in (MB, 10 * MB, 100 * MB)),
]


def main(arguments: list[str]) -> None:
    """Run all cases; the last line is JSON."""
    parser = argparse.ArgumentParser(prog="python -m bench relay-sim", description=__doc__)
    parser.add_argument("--hop-ms", type=float, default=round(hop_seconds(GBIT) * 1000, 1), help="of each hop")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", default="", help="cases whose name contains this")
    chosen = parser.parse_args(arguments)
    results: dict[str, Result] = {}
    for case in CASES:
        if chosen.only in case.name:
            timed = Case(**{**case.__dict__, "hop": chosen.hop_ms / 1000})
            results[case.name] = result = Simulation(timed, chosen.seed).run()
            print(f"{case.name:22s} {result}", flush=True)
    print(json.dumps({"hop_ms": chosen.hop_ms, **_summary(results)}))


def _summary(results: dict[str, Result]) -> dict[str, object]:
    shown: dict[str, object] = {}
    for key, name in (("1000", "1000 hosts, 1 GiB"), ("1000_fail5", "1000, 5 % fail"), ("5000", "5000 hosts, 1 GiB")):
        if result := results.get(name):
            shown[key] = {
                "completion_x": None if result.unfinished else result.completion_x,
                "unfinished": result.unfinished,
                "upstream_copies": result.upstream_copies,
                "cross_zone_copies": result.cross_zone_copies,
            }
    if result := results.get("1000, 10 MB"):
        shown["1000_10mb_s"] = None if result.unfinished else result.completion_seconds
    return shown
