"""Child processes with logs in files, ended by pid and never left behind."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from stafett.cli.local_cluster.interruption import obey_interruption
from stafett.common.errors import StartupFailed

READY_SECONDS = 60.0
"""A machine that is busy otherwise takes long to start a dozen processes."""
STOP_SECONDS = 10.0
LOOPBACK = "127.0.0.1"
PORTS = range(20_000, 30_000)
"""Below those that Linux gives to outgoing connections: of many, one would take a port before its service does."""


_given: deque[int] = deque(maxlen=1000)
"""Ports whose services may not listen yet: given twice, the second service would end, and the first answer for it."""


def free_port() -> int:
    """Find a TCP port that nobody listens on now, and that no outgoing connection is given."""
    while True:
        port = random.SystemRandom().choice(PORTS)
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind((LOOPBACK, port))
            if port not in _given:
                _given.append(port)
                return port


def accepts_connections(port: int, host: str = LOOPBACK) -> bool:
    """Tell whether somebody listens there."""
    try:
        with socket.create_connection((host, port), timeout=0.5):
            return True
    except OSError:
        return False


@dataclass(frozen=True)
class Place:
    """Where a host's parts run: at which address, and in which network namespace ("" = this process's)."""

    address: str = LOOPBACK
    namespace: str = ""

    @property
    def prefix(self) -> tuple[str, ...]:
        """What is put before a command so that it runs there."""
        return ("nsenter", f"--net=/run/netns/{self.namespace}") if self.namespace else ()

    def listens(self, port: int, address: str) -> bool:
        """Tell whether somebody listens on a port of this place, as seen from inside."""
        if not self.namespace:
            return accepts_connections(port, address)
        attempt = f"exec 3<>/dev/tcp/{address}/{port}"
        return subprocess.run([*self.prefix, "bash", "-c", attempt], capture_output=True, check=False).returncode == 0


HERE = Place()


@dataclass
class Process:
    """One running child with its log file."""

    name: str
    popen: subprocess.Popen[bytes]
    log: Path

    @property
    def pid(self) -> int:
        return self.popen.pid

    @property
    def alive(self) -> bool:
        return self.popen.poll() is None

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the process alone; harmless when it has ended."""
        if self.alive:
            self.popen.send_signal(number)

    def stop(self, timeout_seconds: float = STOP_SECONDS) -> int:
        """End it: SIGCONT and SIGTERM, SIGKILL when it does not go in time. Returns the exit code."""
        self.ask_to_end()
        return self.wait(timeout_seconds)

    def ask_to_end(self) -> None:
        """Send SIGTERM, which a frozen process gets, too."""
        self.signal(signal.SIGTERM)
        self.signal(signal.SIGCONT)

    def wait(self, timeout_seconds: float = STOP_SECONDS) -> int:
        """Wait for its end, and kill it when it does not come in time. Returns the exit code."""
        try:
            return self.popen.wait(timeout_seconds)
        except subprocess.TimeoutExpired:
            return self.kill()

    def kill(self) -> int:
        """End it by SIGKILL at once. Returns the exit code."""
        self.signal(signal.SIGKILL)
        return self.popen.wait()

    def log_tail(self, lines: int = 20) -> str:
        """The last lines of its log, for error messages."""
        return "\n".join(self.log.read_text("utf-8", "replace").splitlines()[-lines:])


@dataclass
class Processes:
    """All children of one run. A context manager: leaving it ends them, newest first, none waiting for another."""

    log_dir: Path
    children: list[Process] = field(default_factory=list)

    def start(
        self,
        name: str,
        command: Sequence[str | Path],
        *,
        environment: Mapping[str, str] | None = None,
        ready: Callable[[], bool] | None = None,
    ) -> Process:
        """Start a child in a session of its own and wait until `ready` says yes (at most a minute).

        `environment` is added to ours, from which STAFETT_* and proxy variables are removed.

        Raises:
            StartupFailed: if it ends or is not ready in time; the message holds the end of its log.
        """
        self.log_dir.mkdir(parents=True, exist_ok=True)
        log = self.log_dir / f"{name}.log"
        with log.open("ab") as output:
            popen = subprocess.Popen(
                [str(part) for part in command],
                env={**_clean_environment(), **(environment or {})},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        process = Process(name, popen, log)
        self.children.append(process)
        if ready is not None:
            _wait_ready(process, ready)
        return process

    def __enter__(self) -> Processes:
        return self

    def __exit__(self, *exc: object) -> None:
        for process in reversed(self.children):
            process.ask_to_end()
        for process in reversed(self.children):
            process.wait()


def wait_until(condition: Callable[[], bool], what: str, timeout_seconds: float = READY_SECONDS) -> None:
    """Poll until the condition holds.

    Raises:
        StartupFailed: naming `what` if it does not in time. Interrupted: if the user ends the run.
    """
    deadline = time.monotonic() + timeout_seconds
    obey_interruption()
    while not condition():
        if time.monotonic() > deadline:
            raise StartupFailed(f"{what}: not within {timeout_seconds:.0f} s")
        time.sleep(0.05)
        obey_interruption()


def _wait_ready(process: Process, ready: Callable[[], bool]) -> None:
    with contextlib.suppress(StartupFailed):
        wait_until(lambda: not process.alive or ready(), process.name)
        if process.alive:
            return
    raise StartupFailed(f"{process.name} did not start; its log ends:\n{process.log_tail()}")


def _clean_environment() -> dict[str, str]:
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("STAFETT_") and not name.lower().endswith("_proxy")
    }
