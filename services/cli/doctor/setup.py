"""What the doctor is told of a host: the settings of its node and gateway, and containerd's paths."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from stafett.cli.configure.distros import DISTROS, Distro, DistroName
from stafett.common.settings import load
from stafett.gateway.settings import GatewaySettings
from stafett.node.settings import NodeSettings


@dataclass(frozen=True)
class Setup:
    """One host's installation."""

    distro: Distro
    hosts_dir: Path
    config: Path
    node: NodeSettings
    gateway: GatewaySettings

    @property
    def mirror_url(self) -> str:
        """URL of the gateway's mirror port."""
        return f"http://127.0.0.1:{self.gateway.listen_port}"

    @property
    def tags_url(self) -> str:
        """URL of the gateway's tag port."""
        return f"http://127.0.0.1:{self.gateway.tag_port}"


def read_setup(distro: DistroName, hosts_dir: Path | None, config: Path | None) -> Setup:
    """Read the settings of node and gateway from the environment. Raises SettingsInvalid."""
    paths = DISTROS[distro]
    return Setup(
        paths,
        hosts_dir or paths.hosts_dir,
        config or paths.config,
        load(NodeSettings, [], "stafett node"),
        load(GatewaySettings, [], "stafett gateway"),
    )
