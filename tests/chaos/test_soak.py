"""Continuous pulls while a seeded schedule breaks part after part: no failed pull, no wrong byte, nothing leaks.

STAFETT_SOAK_SECONDS is the length of the schedule, STAFETT_SOAK_SEED repeats one; the logs of a failed run go to the
folder STAFETT_SOAK_LOGS.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Mapping

import pytest

from stafett.cli.local_cluster.cluster import Host
from stafett.cli.local_cluster.processes import Process, wait_until
from tests.chaos.census import Census
from tests.chaos.pullers import Pulling, Tally
from tests.chaos.soak_bed import SoakBed, ended
from tests.chaos.soak_schedule import Fault, Group, Kind, plan, steps

SECONDS = float(os.environ.get("STAFETT_SOAK_SECONDS", "60"))
SEED = int(os.environ.get("STAFETT_SOAK_SEED", random.randrange(1 << 31)))
SLOW_BYTES_PER_SECOND = 300_000.0
WARM_UP_PULLS = 24
QUIET_SECONDS = 3.0
PROXIED = (Kind.SLOW, Kind.REFUSE, Kind.CUT, Kind.SWALLOW)

GROUPS = (
    Group(
        "holders",
        {
            "holder0": (Kind.FREEZE, *PROXIED),  # never ends, so that a leak in it can be seen
            "holder1": (Kind.KILL, Kind.FREEZE, Kind.RESTART, *PROXIED),
            "holder2": (Kind.KILL, Kind.FREEZE, Kind.RESTART, *PROXIED),
            "holder3": (Kind.KILL, Kind.FREEZE, Kind.RESTART, *PROXIED),
        },
        down_max=2,
    ),
    Group("own nodes", {name: (Kind.KILL, Kind.FREEZE, Kind.RESTART) for name in ("client0", "client1")}),
    Group(
        "trackers",
        {
            "tracker0": (Kind.FREEZE,),
            "tracker1": (Kind.KILL, Kind.FREEZE, Kind.RESTART),
            "tracker2": (Kind.KILL, Kind.FREEZE, Kind.RESTART),
        },
        excludes=("redis",),
    ),
    Group("redis", {"redis": (Kind.KILL, Kind.FREEZE)}, excludes=("trackers",)),
)


class Saboteur:
    """Carries out a plan, one step after the other; a step that takes long delays all that follow."""

    def __init__(self, bed: SoakBed) -> None:
        self._bed = bed
        self._hosts = {host.name: host for host in bed.cluster.hosts}
        self._ports = {f"tracker{number}": tracker.port for number, tracker in enumerate(bed.cluster.trackers)}
        self._started_at = time.monotonic()

    def carry_out(self, faults: tuple[Fault, ...]) -> None:
        """Break and heal as planned."""
        self._started_at = time.monotonic()
        delay = 0.0
        for step in steps(faults):
            time.sleep(max(0.0, step.at + delay - self._now()))
            delay = max(delay, self._now() - step.at)
            self._say(f"{step.fault.part} {'healed' if step.heals else step.fault.kind.value}")
            (self._heal if step.heals else self._break)(step.fault)

    def _now(self) -> float:
        return time.monotonic() - self._started_at

    def _say(self, what: str) -> None:
        print(f"{self._now():7.1f} s  {what}", flush=True)

    def _break(self, fault: Fault) -> None:
        proxy = self._bed.proxies.get(fault.part)
        match fault.kind:
            case Kind.KILL:
                self._process(fault.part).kill()
            case Kind.FREEZE:
                self._process(fault.part).signal(signal.SIGSTOP)
            case Kind.RESTART:
                self._process(fault.part).signal(signal.SIGTERM)
            case _:
                assert proxy is not None
                actions: Mapping[Kind, Callable[[], None]] = {
                    Kind.SLOW: lambda: proxy.slow(SLOW_BYTES_PER_SECOND),
                    Kind.REFUSE: proxy.refuse,
                    Kind.CUT: proxy.cut,
                    Kind.SWALLOW: proxy.swallow,
                }
                actions[fault.kind]()

    def _heal(self, fault: Fault) -> None:
        match fault.kind:
            case Kind.KILL:
                self._start(fault.part)
            case Kind.FREEZE:
                self._process(fault.part).signal(signal.SIGCONT)
            case Kind.RESTART:
                assert ended(self._process(fault.part)) == 0, f"{fault.part} ended badly"
                self._start(fault.part)
            case _:
                self._bed.proxies[fault.part].pass_()

    def _process(self, part: str) -> Process:
        if part == "redis":
            process = self._bed.cluster.redis
        elif part in self._ports:
            process = next(t.process for t in self._bed.cluster.trackers if t.port == self._ports[part])
        else:
            process = self._hosts[part].node
        assert process is not None
        return process

    def _start(self, part: str) -> None:
        if part == "redis":
            self._bed.cluster.start_redis()
        elif part in self._ports:
            self._bed.start_tracker(self._ports[part])
        else:
            self._bed.start_node(self._hosts[part])


def never_ending(bed: SoakBed) -> dict[str, Process]:
    """Processes that the schedule never ends: all gateways, one tracker, one node."""
    found: dict[str, Process] = {f"gateway of {host.name}": started(host, host.gateway) for host in bed.gateway_hosts}
    return {
        **found,
        "tracker0": bed.cluster.trackers[0].process,
        "holder0": started(bed.holders[0], bed.holders[0].node),
    }


def started(host: Host, process: Process | None) -> Process:
    assert process is not None, f"{host.name} is not running"
    return process


def quiet_census(bed: SoakBed, survivors: Mapping[str, Process]) -> dict[str, Census]:
    """Count when nobody pulls, and what was asked for has ended."""
    time.sleep(QUIET_SECONDS)
    return bed.census(survivors)


@pytest.mark.timeout(SECONDS * 1.5 + 180)
def test_nobody_notices_a_minute_of_faults() -> None:
    faults = plan(SEED, SECONDS, GROUPS)
    print(f"\nSTAFETT_SOAK_SEED={SEED} STAFETT_SOAK_SECONDS={SECONDS:.0f}: {len(faults)} faults")
    with SoakBed() as bed:
        survivors = never_ending(bed)
        warm_up, tally = Tally(), Tally()
        with Pulling(
            [*bed.http_pullers(warm_up), *bed.containerd_pullers(warm_up)], bed.images, warm_up, SEED
        ) as clients:
            clients.wait_pulls(WARM_UP_PULLS)
        assert not warm_up.failures, [str(failure) for failure in warm_up.failures]
        before = quiet_census(bed, survivors)
        with Pulling([*bed.http_pullers(tally), *bed.containerd_pullers(tally)], bed.images, tally, SEED) as clients:
            Saboteur(bed).carry_out(faults)
            bed.wait_ready(host.name for host in bed.cluster.hosts)
            clients.wait_pulls(len(bed.images))
        wait_until(lambda: all(node.health.active_streams == 0 for node in bed.nodes()), "no stream is left open")
        after = quiet_census(bed, survivors)
        print(f"warm-up: {warm_up}\nsoak: {tally}")
        for name, census in after.items():
            print(f"{name}: {before[name]}; then {census}")
        assert not tally.failures, "\n".join(str(failure) for failure in tally.failures)
        assert tally.wrong_bytes == 0
        assert all(process.alive for process in survivors.values())
        grown = {name: growth for name, census in after.items() if (growth := census.growth_since(before[name]))}
        assert not grown, grown
