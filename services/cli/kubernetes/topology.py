"""Where a host stands, by the labels of its Kubernetes node, as settings for the host's node and gateway."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import cast

from stafett.cli.kubernetes.api import KubernetesApi
from stafett.common.topology import Topology


@dataclass(frozen=True)
class TopologyLabels:
    """Names of the labels that say it."""

    region: str = "topology.kubernetes.io/region"
    zone: str = "topology.kubernetes.io/zone"
    rack: str = "topology.kubernetes.io/rack"

    def read(self, labels: Mapping[str, str]) -> Topology:
        """Tell where a host with these labels stands; a label that it has not got leaves its field empty."""
        return Topology(*(labels.get(name, "") for name in (self.region, self.zone, self.rack)))


def write_topology(api: KubernetesApi, node: str, names: TopologyLabels, folder: Path) -> Topology:
    """Write a host's place into a folder of settings (STAFETT_SETTINGS_DIR), for its node and its gateway.

    Raises:
        ApiFailed: if the API server does not tell.
        OSError: if the folder cannot be written.
    """
    metadata = cast(Mapping[str, object], api.get(f"/api/v1/nodes/{node}").get("metadata", {}))
    topology = names.read(cast(Mapping[str, str], metadata.get("labels") or {}))
    for field, value in asdict(topology).items():
        for part in ("NODE", "GATEWAY"):
            (folder / f"STAFETT_{part}_{field.upper()}").write_text(value)
    return topology
