"""Takes the start-up taint off a Kubernetes node once the host's gateway answers, so that pods come after it."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Mapping, Sequence
from typing import cast

import httpx2

from stafett.cli.kubernetes.api import ApiConflict, ApiFailed, Json, KubernetesApi, own_cluster

PROBE_SECONDS = 2.0
RETRY_SECONDS = 2.0
LOOK_AGAIN_SECONDS = 30.0
"""A node object that was deleted and made again has its taint back."""


def without_taint(node: Json, key: str) -> Json | None:
    """Tell the merge patch that takes every taint of this key away and leaves the others; None if there is none."""
    metadata, spec = (cast(Mapping[str, object], node.get(part) or {}) for part in ("metadata", "spec"))
    taints = cast(Sequence[Mapping[str, str]], spec.get("taints") or ())
    others = [taint for taint in taints if taint.get("key") != key]
    if len(others) == len(taints):
        return None
    return {"metadata": {"resourceVersion": metadata.get("resourceVersion")}, "spec": {"taints": others}}


def gateway_answers(url: str) -> bool:
    """Tell whether the gateway at this URL takes requests."""
    try:
        return httpx2.get(f"{url}/readyz", timeout=PROBE_SECONDS, trust_env=False).is_success
    except httpx2.HTTPError:
        return False


def remove_taint(api: KubernetesApi, node: str, key: str) -> bool:
    """Take the taint away; return whether it was there. Another's change at the same time is not lost.

    Raises:
        ApiFailed: if the API server does not answer, or refuses.
    """
    path = f"/api/v1/nodes/{node}"
    while (change := without_taint(api.get(path), key)) is not None:
        try:
            api.merge(path, change)
        except ApiConflict:
            continue
        return True
    return False


def keep_untainted(node: str, key: str, gateway_url: str) -> None:
    """Take the taint away whenever it is there and the gateway answers, until SIGTERM."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # a container's first process has no default action for it
    while True:
        time.sleep(LOOK_AGAIN_SECONDS if _untainted(node, key, gateway_url) else RETRY_SECONDS)


def _untainted(node: str, key: str, gateway_url: str) -> bool:
    if not gateway_answers(gateway_url):
        return False
    try:
        with own_cluster() as api:
            if remove_taint(api, node, key):
                print(f"took {key} off {node}", flush=True)
    except ApiFailed as error:
        print(f"{error}; trying again", file=sys.stderr)
        return False
    return True
