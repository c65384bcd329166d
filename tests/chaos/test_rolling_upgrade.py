"""Parts of an earlier commit, with another protocol, are replaced one by one under load: no pull fails meanwhile."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from stafett.cli.local_cluster.cluster import Host, Tracker
from stafett.cli.local_cluster.processes import Process, Processes
from tests.chaos.pullers import Pulling, Tally
from tests.chaos.soak_bed import SoakBed

ROOT = Path(__file__).parents[2]
PULLS_BETWEEN = 2
STOP_SECONDS = 25.0


@dataclass
class MixedProcesses(Processes):
    """Starts parts from an old source tree, until it is taken away."""

    old_tree: Path | None = None

    def start(
        self,
        name: str,
        command: Sequence[str | Path],
        *,
        environment: Mapping[str, str] | None = None,
        ready: Callable[[], bool] | None = None,
    ) -> Process:
        """See `Processes`."""
        environment = dict(environment or {})
        if self.old_tree:
            environment = {key: value for key, value in environment.items() if known(self.old_tree, key)}
            environment |= imported_from(self.old_tree)
        return super().start(name, command, environment=environment, ready=ready)


def imported_from(tree: Path) -> dict[str, str]:
    """Environment in which `stafett` is this tree's."""
    return {"PYTHONPATH": str(tree / "src")}


def known(tree: Path, variable: str) -> bool:
    """Tell whether the tree's parts have this setting; those before the metrics did not."""
    return not variable.endswith("_METRICS_PORT") or (tree / "services" / "common" / "metrics_endpoint.py").exists()


def git(*arguments: str) -> bytes:
    return subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, check=True).stdout


def earlier_commit() -> str:
    """The newest commit whose protocol is not today's, or the one that STAFETT_UPGRADE_FROM names."""
    try:
        if asked := os.environ.get("STAFETT_UPGRADE_FROM"):
            return git("rev-parse", "--verify", f"{asked}^{{commit}}").decode().strip()
        changed = git("log", "-1", "--format=%H", "--", "protos/stafett").decode().strip()
        return git("rev-parse", "--verify", f"{changed}^").decode().strip()
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no history to take an earlier commit from (git fetch --unshallow): {error}")


def stop(process: Process | None) -> None:
    """End a part gracefully."""
    assert process is not None
    assert process.stop(STOP_SECONDS) == 0, process.log_tail()


@pytest.fixture
def old_tree(tmp_path: Path) -> Path:
    commit = earlier_commit()
    with tarfile.open(fileobj=io.BytesIO(git("archive", commit, "services", "src"))) as archive:
        archive.extractall(tmp_path, filter="tar")
    shown = subprocess.run(
        [sys.executable, "-c", "import stafett; print(stafett.__file__)"],
        env={**os.environ, **imported_from(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert Path(shown.stdout.strip()).resolve() == (tmp_path / "services" / "__init__.py").resolve()
    print(f"\nupgrading from {git('log', '-1', '--format=%h %s', commit).decode().strip()}")
    return tmp_path


@pytest.mark.timeout(240)
def test_no_pull_fails_while_each_part_is_replaced_by_a_newer_one(old_tree: Path) -> None:
    tally = Tally()
    bed = SoakBed(holder_count=2, client_count=2, tracker_count=2, with_containerd=False, through_proxies=False)
    processes = bed.cluster.processes = MixedProcesses(bed.cluster.processes.log_dir, old_tree=old_tree)
    with bed:
        processes.old_tree = None
        old = [process for process in processes.children if process is not bed.cluster.redis]

        def replace_node(host: Host) -> None:
            stop(host.node)
            bed.start_node(host)
            bed.wait_ready([host.name])
            bed.wait_held()

        def replace_gateway(host: Host) -> None:
            stop(host.gateway)
            bed.start_gateway(host)

        def replace_tracker(tracker: Tracker) -> None:
            stop(tracker.process)
            bed.start_tracker(tracker.port)
            bed.wait_ready(host.name for host in bed.cluster.hosts)

        (holder0, holder1), (client0, client1) = bed.holders, bed.clients
        tracker0, tracker1 = bed.cluster.trackers
        with Pulling(bed.http_pullers(tally, each=1, passes_over=True), bed.images, tally, seed=0) as clients:
            clients.wait_pulls(PULLS_BETWEEN)
            replace_gateway(client0)  # a new gateway with old trackers and an old node on its host
            clients.wait_pulls(PULLS_BETWEEN)
            replace_node(holder0)  # a new node with old trackers, read by an old and a new gateway
            clients.wait_pulls(PULLS_BETWEEN)
            replace_tracker(tracker0)  # trackers of both kinds over one Redis
            clients.wait_pulls(PULLS_BETWEEN)
            replace_tracker(tracker1)  # old nodes and an old gateway with new trackers
            clients.wait_pulls(PULLS_BETWEEN)
            for host in (client0, client1, holder1):
                replace_node(host)
            replace_gateway(client1)
            clients.wait_pulls(PULLS_BETWEEN)
        print(tally)
        assert not tally.failures, "\n".join(map(str, tally.failures))
        assert not [process.name for process in old if process.alive], "nothing old is left"
