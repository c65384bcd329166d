"""What a process has open: descriptors, threads, memory, asyncio tasks; and whether that has grown."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from stafett.cli.local_cluster.processes import Process, Processes, wait_until

HOOK = Path(__file__).parent / "census_hook"
MEMORY_SLACK_BYTES = 48 * 1024 * 1024
MEMORY_SLACK_SHARE = 0.25
DESCRIPTORS_SLACK = 16
THREADS_SLACK = 24
"""Pools of threads for disk work fill up to their maximum whenever they are first needed."""
TASKS_SLACK = 24
"""Sessions and watches of killed trackers move to those that live: two tasks for each."""


@dataclass
class CountedProcesses(Processes):
    """Processes that take part in the census, which answers into `directory`."""

    directory: Path = field(kw_only=True)

    def start(
        self,
        name: str,
        command: Sequence[str | Path],
        *,
        environment: Mapping[str, str] | None = None,
        ready: Callable[[], bool] | None = None,
    ) -> Process:
        """See `Processes`."""
        self.directory.mkdir(exist_ok=True)
        path = os.pathsep.join([str(HOOK), *filter(None, [os.environ.get("PYTHONPATH", "")])])
        counted = {"PYTHONPATH": path, "CENSUS_DIR": str(self.directory)}
        return super().start(name, command, environment={**counted, **(environment or {})}, ready=ready)


@dataclass(frozen=True)
class Census:
    """One process at one moment."""

    descriptors: int
    threads: int
    memory_bytes: int
    tasks: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def take(cls, process: Process, directory: Path) -> Census:
        """Count now; the process must have been started in a `census_environment`."""
        answer = directory / str(process.pid)
        answer.unlink(missing_ok=True)
        process.signal(signal.SIGUSR1)
        wait_until(answer.exists, f"{process.name} counting its tasks")
        proc = Path("/proc") / str(process.pid)
        status = dict(line.split(":", 1) for line in (proc / "status").read_text().splitlines())
        return cls(
            len(list((proc / "fd").iterdir())),
            int(status["Threads"]),
            int(status["VmRSS"].split()[0]) * 1024,
            json.loads(answer.read_text()),
        )

    def growth_since(self, before: Census) -> list[str]:
        """Say what has grown by more than noise; nothing when all is well."""
        memory_max = before.memory_bytes * (1 + MEMORY_SLACK_SHARE) + MEMORY_SLACK_BYTES
        grown = []
        if self.descriptors > before.descriptors + DESCRIPTORS_SLACK:
            grown.append(f"descriptors {before.descriptors} -> {self.descriptors}")
        if self.threads > before.threads + THREADS_SLACK:
            grown.append(f"threads {before.threads} -> {self.threads}")
        if self.memory_bytes > memory_max:
            grown.append(f"memory {before.memory_bytes >> 20} -> {self.memory_bytes >> 20} MiB")
        if sum(self.tasks.values()) > sum(before.tasks.values()) + TASKS_SLACK:
            more = {name: count for name, count in self.tasks.items() if count > before.tasks.get(name, 0)}
            grown.append(f"tasks {sum(before.tasks.values())} -> {sum(self.tasks.values())}: {more}")
        return grown

    def __str__(self) -> str:
        tasks = sum(self.tasks.values())
        return f"{self.descriptors} fds, {self.threads} threads, {self.memory_bytes >> 20} MiB, {tasks} tasks"
