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
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from stafett.cli.local_cluster.cluster import Host
from stafett.cli.local_cluster.containerd import Containerd, containerd_available
from stafett.cli.local_cluster.processes import Process, wait_until
from stafett.common.blob_files import blob_path
from stafett.common.digest import Digest
from tests.chaos.census import Census
from tests.chaos.pullers import PLATFORM, ContainerdPuller, HttpPuller, Pulling, Tally
from tests.chaos.soak_bed import SoakBed, ended
from tests.chaos.soak_schedule import Fault, Group, Kind, plan, steps

SECONDS = float(os.environ.get("STAFETT_SOAK_SECONDS", "60"))
SEED = int(os.environ.get("STAFETT_SOAK_SEED", random.randrange(1 << 31)))
SLOW_BYTES_PER_SECOND = 300_000.0
WARM_UP_ROUNDS = 2
QUIET_SECONDS = 3.0
NOTICED_SECONDS = 1.5
"""After so long a node has noticed that a file is gone."""
PROXIED = (Kind.SLOW, Kind.REFUSE, Kind.CUT, Kind.SWALLOW)

GROUPS = (
    Group(
        "holders",
        {
            "holder0": (Kind.FREEZE, *PROXIED),  # never ends, so that a leak in it can be seen
            "holder1": (Kind.KILL, Kind.FREEZE, Kind.RESTART, *PROXIED),
            "holder2": (Kind.KILL, Kind.FREEZE, Kind.RESTART, *PROXIED),
            # Alone in lying: gateways do not ask it again for minutes, and two more may be down.
            "holder3": (Kind.KILL, Kind.FREEZE, Kind.RESTART, Kind.CORRUPT, *PROXIED),
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
    Group("gateways", {"gateway1": (Kind.KILL,)}),
    Group("containerd", {"containerd": (Kind.RESTART,)}),
)


class Saboteur:
    """Carries out a plan, one step after the other; a step that takes long delays all that follow."""

    def __init__(self, bed: SoakBed, tally: Tally) -> None:
        self._bed = bed
        self._tally = tally
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
        if fault.part == "containerd":
            self._bed.containerd_in_use.acquire()  # its own client cannot go on without it
        match fault.kind:
            case Kind.CORRUPT:
                path = self._blob_of(fault)
                content = bytearray(path.read_bytes())
                content[len(content) // 2] ^= 1
                _replace(path, bytes(content))
                self._tally.lies += 1
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
            case Kind.CORRUPT:
                path = self._blob_of(fault)
                path.unlink()
                time.sleep(NOTICED_SECONDS)  # as when the image is removed and pulled anew
                _replace(path, blob_path(self._bed.holders[0].content_root, Digest(path.name)).read_bytes())
            case Kind.KILL:
                self._start(fault.part)
            case Kind.FREEZE:
                self._process(fault.part).signal(signal.SIGCONT)
            case Kind.RESTART:
                assert ended(self._process(fault.part)) == 0, f"{fault.part} ended badly"
                self._start(fault.part)
                if fault.part == "containerd":
                    self._bed.containerd_in_use.release()
            case _:
                self._bed.proxies[fault.part].pass_()

    def _blob_of(self, fault: Fault) -> Path:
        """Choose the largest layer of some image: it is wrong bytes in the middle of a stream that cost an attempt."""
        image = random.Random(fault.at).choice(self._bed.images)
        layer = max(image.blobs[PLATFORM], key=lambda blob: blob.size_bytes)
        return blob_path(self._hosts[fault.part].content_root, layer.digest)

    def _process(self, part: str) -> Process:
        if part == "redis":
            process = self._bed.cluster.redis
        elif part == "containerd":
            process = self._containerd.process
        elif part.startswith("gateway"):
            process = self._client(part).gateway
        elif part in self._ports:
            process = next(t.process for t in self._bed.cluster.trackers if t.port == self._ports[part])
        else:
            process = self._hosts[part].node
        assert process is not None
        return process

    @property
    def _containerd(self) -> Containerd:
        assert self._bed.containerd_host is not None
        assert self._bed.containerd_host.containerd is not None
        return self._bed.containerd_host.containerd

    def _client(self, part: str) -> Host:
        return self._bed.clients[int(part.removeprefix("gateway"))]

    def _start(self, part: str) -> None:
        if part == "redis":
            self._bed.cluster.start_redis()
        elif part == "containerd":
            self._containerd.start(self._bed.cluster.processes, "containerd-soak")
        elif part.startswith("gateway"):
            self._bed.start_gateway(self._client(part))
        elif part in self._ports:
            self._bed.start_tracker(self._ports[part])
        else:
            self._bed.start_node(self._hosts[part])


def _replace(path: Path, content: bytes) -> None:
    incoming = path.parents[2] / "incoming"
    incoming.write_bytes(content)
    incoming.rename(path)


def never_ending(bed: SoakBed) -> dict[str, Process]:
    """Processes that the schedule never ends: all gateways but one, one tracker, one node."""
    hosts = [host for host in bed.gateway_hosts if host is not bed.clients[1]]
    found: dict[str, Process] = {f"gateway of {host.name}": started(host, host.gateway) for host in hosts}
    return {
        **found,
        "tracker0": bed.cluster.trackers[0].process,
        "holder0": started(bed.holders[0], bed.holders[0].node),
    }


def started(host: Host, process: Process | None) -> Process:
    assert process is not None, f"{host.name} is not running"
    return process


def warm_up(bed: SoakBed) -> None:
    """Let all clients pull everything: without Redis a gateway can go on only with what it has heard of."""
    tally = Tally()
    pullers = [*bed.http_pullers(tally), *bed.containerd_pullers(tally)]

    def pull_all(puller: HttpPuller | ContainerdPuller) -> None:
        for image in bed.images * WARM_UP_ROUNDS:
            puller.pull(image)
        puller.close()

    with ThreadPoolExecutor(len(pullers)) as threads:
        list(threads.map(pull_all, pullers))


def quiet_census(bed: SoakBed, survivors: Mapping[str, Process]) -> dict[str, Census]:
    """Count when nobody pulls, and what was asked for has ended."""
    time.sleep(QUIET_SECONDS)
    return bed.census(survivors)


@pytest.mark.timeout(SECONDS * 1.5 + 180)
def test_nobody_notices_a_minute_of_faults() -> None:
    groups = GROUPS if containerd_available() else GROUPS[:-1]
    faults = plan(SEED, SECONDS, groups)
    print(f"\nSTAFETT_SOAK_SEED={SEED} STAFETT_SOAK_SECONDS={SECONDS:.0f}: {len(faults)} faults")
    with SoakBed() as bed:
        survivors = never_ending(bed)
        warm_up(bed)
        tally = Tally()
        before = quiet_census(bed, survivors)
        pullers: list[HttpPuller | ContainerdPuller] = [
            *bed.http_pullers(tally, resumes=[1]),
            *bed.containerd_pullers(tally),
        ]
        with Pulling(pullers, bed.images, tally, SEED) as clients:
            Saboteur(bed, tally).carry_out(faults)
            bed.wait_held()
            bed.wait_ready(host.name for host in bed.cluster.hosts)
            clients.wait_pulls(len(bed.images))
        wait_until(lambda: all(node.health.active_streams == 0 for node in bed.nodes()), "no stream is left open")
        after = quiet_census(bed, survivors)
        print(tally)
        for name, census in after.items():
            print(f"{name}: {before[name]}; then {census}")
        assert not tally.failures, "\n".join(str(failure) for failure in tally.failures)
        assert tally.wrong_bytes == 0
        gateway_kills = sum(fault.group == "gateways" for fault in faults)
        assert tally.resumed <= 2 * (gateway_kills + tally.lies), "nothing but a dead gateway or a lie cuts a response"
        assert all(process.alive for process in survivors.values())
        grown = {name: growth for name, census in after.items() if (growth := census.growth_since(before[name]))}
        assert not grown, grown
