"""Waits until a DaemonSet has done its work on every host."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import cast

from stafett.cli.kubernetes.api import ApiFailed, KubernetesApi

POLL_SECONDS = 1.0


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
            daemonset = api.get(f"/apis/apps/v1/namespaces/{namespace}/daemonsets/{name}")
            metadata, status = (cast(Mapping[str, int], daemonset.get(part) or {}) for part in ("metadata", "status"))
            ready, wanted = status.get("numberReady", 0), status.get("desiredNumberScheduled", 0)
            known = status.get("observedGeneration", 0) >= metadata.get("generation", 1)  # its controller has looked
            done, said = known and ready >= wanted, f"{ready} of {wanted} hosts done"
        except ApiFailed as error:
            said = str(error)
        if said != told:
            tell(said)
            told = said
        if done or time.monotonic() >= deadline:
            return done
        time.sleep(POLL_SECONDS)
