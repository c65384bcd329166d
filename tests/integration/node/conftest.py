from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from stafett.cli.local_cluster.containerd import Containerd
from stafett.cli.local_cluster.processes import Processes


@pytest.fixture
def disk() -> Iterator[ThreadPoolExecutor]:
    """Threads for reads."""
    with ThreadPoolExecutor(4) as executor:
        yield executor


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Processes]:
    """Children that end with the test."""
    with Processes(tmp_path / "log") as children:
        yield children


@pytest.fixture
def containerd(processes: Processes) -> Iterator[Containerd]:
    """A running containerd of the test's own, in a short path as unix sockets need it."""
    directory = Path(tempfile.mkdtemp(prefix="stf-"))
    daemon = Containerd(directory)
    daemon.start(processes, "containerd")
    yield daemon
    if daemon.process:
        daemon.process.stop()
    daemon.unmount()
    shutil.rmtree(directory)
