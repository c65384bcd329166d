"""Waits until a DaemonSet has done its work on every host."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import cast

from stafett.cli.kubernetes.api import ApiFailed, Json, KubernetesApi

POLL_SECONDS = 1.0


@dataclass(frozen=True)
class Progress:
    """How many of a DaemonSet's pods are ready. `known` is false until its controller has looked at it."""

    ready: int
    wanted: int
    known: bool

    @classmethod
    def of(cls, daemonset: Json) -> Progress:
        """Read a DaemonSet's status."""
        metadata, status = (cast(Mapping[str, int], daemonset.get(part) or {}) for part in ("metadata", "status"))
        seen = status.get("observedGeneration", 0) >= metadata.get("generation", 1)
        return cls(status.get("numberReady", 0), status.get("desiredNumberScheduled", 0), seen)

    @property
    def done(self) -> bool:
        """Whether every pod is ready."""
        return self.known and self.ready >= self.wanted


def await_daemonset(
    api: KubernetesApi, namespace: str, name: str, timeout_seconds: float, tell: Callable[[str], object]
) -> bool:
    """Wait until all pods of a DaemonSet are ready; return whether they are, after at most `timeout_seconds`.

    What changes is told, also that the API server does not answer, which is waited out.
    """
    deadline, told = time.monotonic() + timeout_seconds, ""
    while True:
        done = False
        try:
            progress = Progress.of(api.get(f"/apis/apps/v1/namespaces/{namespace}/daemonsets/{name}"))
            done, said = progress.done, f"{progress.ready} of {progress.wanted} hosts done"
        except ApiFailed as error:
            said = str(error)
        if said != told:
            tell(said)
            told = said
        if done or time.monotonic() >= deadline:
            return done
        time.sleep(POLL_SECONDS)
