"""Which platform this machine runs, in the words of image indexes."""

from __future__ import annotations

import platform

_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


def own_platform() -> str:
    """This machine's platform, "linux/<architecture>"."""
    machine = platform.machine()
    return f"linux/{_ARCHITECTURES.get(machine, machine)}"
