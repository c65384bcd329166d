"""Takes a cluster away when whoever made it is killed: waits beside it for the end of its standard input.

Run as `python -m stafett.cli.local_cluster.sweeper DIRECTORY`. Any input before the end means that all is clean.
The cluster's processes are known by their logs: their standard output is a file below the directory.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

SWEEP_SECONDS = 10.0
MOUNTS = Path("/proc/self/mounts")


def main() -> None:
    """Wait for the owner's end, then end its processes and remove the directory."""
    directory = Path(sys.argv[1])
    if sys.stdin.buffer.read():
        return
    deadline = time.monotonic() + SWEEP_SECONDS
    while (pids := list(_writers(directory))) and time.monotonic() < deadline:
        for pid in pids:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)
    # What is mounted there may be somebody else's: better a directory too many than a file too few.
    if f" {directory}/" not in MOUNTS.read_text():
        shutil.rmtree(directory, ignore_errors=True)


def _writers(directory: Path) -> Iterator[int]:
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            with contextlib.suppress(OSError):
                if (process / "fd" / "1").readlink().is_relative_to(directory):
                    yield int(process.name)


if __name__ == "__main__":
    main()
