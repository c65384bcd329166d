"""A demo that is stopped leaves no process and no directory, however and whenever it is stopped."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from stafett.cli.local_cluster.processes import wait_until

DEMO = (sys.executable, "-m", "stafett", "demo", "--store", "oci-layout")


def descendants(pid: int) -> list[int]:
    """Pids of all that a process has started, directly or not."""
    try:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
        children = [int(child) for task in tasks for child in (task / "children").read_text().split()]
    except OSError:
        return []
    return children + [grandchild for child in children for grandchild in descendants(child)]


@pytest.mark.needs_program("docker-registry")
@pytest.mark.parametrize(
    ("number", "processes"), [(signal.SIGINT, 2), (signal.SIGTERM, 5), (signal.SIGHUP, 9), (signal.SIGHUP, 11)]
)
def test_nothing_is_left(tmp_path: Path, number: signal.Signals, processes: int) -> None:
    """Stopped when so many processes run; SIGINT was inherited as ignored, as for a background job of a script."""
    ignored = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        demo = subprocess.Popen(
            DEMO,
            env={**os.environ, "TMPDIR": str(tmp_path)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
    finally:
        signal.signal(signal.SIGINT, ignored)
    try:
        wait_until(lambda: len(descendants(demo.pid)) >= processes or demo.poll() is not None, "the demo's processes")
        assert demo.poll() is None
        children = descendants(demo.pid)
        demo.send_signal(number)
        time.sleep(0.1)
        demo.send_signal(number)
        assert demo.wait(60) == 130
        assert [pid for pid in children if Path(f"/proc/{pid}").exists()] == []
        assert list(tmp_path.iterdir()) == []
    finally:
        demo.kill()
