"""Which content store the demo's hosts use."""

from __future__ import annotations

from enum import Enum


class StoreChoice(Enum):
    """`AUTO` means containerd where root and a containerd binary are there, OCI layouts otherwise."""

    AUTO = "auto"
    CONTAINERD = "containerd"
    OCI_LAYOUT = "oci-layout"
