"""Where a host stands, by the labels of its Kubernetes node, as settings for the host's node and gateway."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import cast

from stafett.cli.kubernetes.api import KubernetesApi
from stafett.common.topology import Topology


def write_topology(api: KubernetesApi, node: str, names: Sequence[str], folder: Path) -> Topology:
    """Write a host's place into a folder of settings (STAFETT_SETTINGS_DIR), for its node and its gateway.

    `names`: the labels with region, zone and rack; one that the node has not got leaves its field empty.

    Raises:
        ApiFailed: if the API server does not tell.
        OSError: if the folder cannot be written.
    """
    metadata = cast(Mapping[str, object], api.get(f"/api/v1/nodes/{node}").get("metadata", {}))
    labels = cast(Mapping[str, str], metadata.get("labels") or {})
    topology = Topology(*(labels.get(name, "") for name in names))
    for field, value in asdict(topology).items():
        for part in ("NODE", "GATEWAY"):
            (folder / f"STAFETT_{part}_{field.upper()}").write_text(value)
    return topology
