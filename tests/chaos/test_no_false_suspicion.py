"""The opposite of the soak: a machine at its limits, short pauses everywhere, but nothing fails: nobody is suspected.

STAFETT_CALM_SECONDS is how long it lasts.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from stafett.api.v1 import types_pb2
from stafett.cli.local_cluster.processes import Process
from tests.chaos.pullers import Pulling, Tally
from tests.chaos.soak_bed import SoakBed, pause
from tests.chaos.watchers import Watchers

SECONDS = float(os.environ.get("STAFETT_CALM_SECONDS", "30"))
PAUSE_SECONDS = 0.2
BETWEEN_PAUSES_SECONDS = 0.05
READY = types_pb2.NODE_STATE_READY


@contextmanager
def busy_machine() -> Iterator[list[subprocess.Popen[bytes]]]:
    """Keep all cores busy, by processes of our own that end with us."""
    burn = "import os\nparent = os.getppid()\nwhile os.getppid() == parent: sum(range(100_000))"
    burners: list[subprocess.Popen[bytes]] = []
    try:
        for _ in range(os.cpu_count() or 1):
            burners.append(subprocess.Popen([sys.executable, "-c", burn]))  # noqa: PERF401 - a failure ends those before
        yield burners
    finally:
        for burner in burners:
            burner.kill()
            burner.wait()


def every_process(bed: SoakBed) -> list[Process]:
    """Trackers, nodes, gateways and Redis."""
    nodes = [host.node for host in bed.cluster.hosts]
    gateways = [host.gateway for host in bed.gateway_hosts]
    found = [bed.cluster.redis, *(tracker.process for tracker in bed.cluster.trackers), *nodes, *gateways]
    assert all(process is not None for process in found)
    return [process for process in found if process is not None]


@pytest.mark.timeout(SECONDS * 1.5 + 120)
def test_load_and_short_pauses_make_nobody_suspect() -> None:
    tally, pauses = Tally(), 0
    with SoakBed(with_containerd=False, through_proxies=False) as bed:
        ports = [tracker.port for tracker in bed.cluster.trackers]
        registered = {node.id: node.flaps for node in bed.nodes()}
        with (
            Watchers(ports) as watchers,
            busy_machine() as burners,
            Pulling(bed.http_pullers(tally, each=1), bed.images, tally, seed=0),
        ):
            while watchers.elapsed() < SECONDS:
                for process in every_process(bed):
                    pause(process, PAUSE_SECONDS)
                    pauses += 1
                    time.sleep(BETWEEN_PAUSES_SECONDS)
            assert all(burner.poll() is None for burner in burners)
        print(f"\n{pauses} pauses; {tally}; {len(watchers.seen)} states seen, {watchers.snapshots} snapshots")
        suspected = watchers.other_than(READY)
        assert not suspected, "\n".join(map(str, suspected))
        assert watchers.snapshots >= len(ports), "each tracker has told the states of all nodes"
        assert {node.id: node.flaps for node in bed.nodes()} == registered
        assert not tally.failures, "\n".join(map(str, tally.failures))


def test_the_watchers_see_a_real_failure() -> None:
    """Guards the test above: the same watchers do see a node that is frozen for good."""
    with SoakBed(holder_count=1, client_count=1, tracker_count=2, with_containerd=False, through_proxies=False) as bed:
        frozen = bed.holders[0].node
        assert frozen is not None
        with Watchers([tracker.port for tracker in bed.cluster.trackers]) as watchers:
            frozen.signal(signal.SIGSTOP)
            deadline = time.monotonic() + 20
            while len({seen.tracker for seen in watchers.other_than(READY)}) < 2:
                assert time.monotonic() < deadline, "both trackers tell that it is down"
                time.sleep(0.1)
        assert {seen.node for seen in watchers.other_than(READY)} == {bed.holders[0].name}
