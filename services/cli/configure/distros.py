"""Where distributions keep containerd's files, and what their users have to change where we cannot. Pure.

What they do themselves was read in their sources: k3s and rke2 set config_path, and a table that stands in a template
again keeps containerd from starting; EKS merges user data into its file; Talos sets config_path, and merges parts.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from textwrap import indent

from stafett.cli.containerd_config import plugin_of


class DistroName(StrEnum):
    """Distributions that are known."""

    CONTAINERD = "containerd"
    K3S = "k3s"
    RKE2 = "rke2"
    EKS = "eks"
    GKE = "gke"
    TALOS = "talos"


@dataclass(frozen=True)
class Distro:
    """Paths on a host, and where its operator changes containerd's configuration."""

    name: DistroName
    hosts_dir: Path
    config: Path
    where: str
    then: str

    def exact_change(self, version: int) -> str:
        """Tell what to change in a configuration of this version, and where, so that it looks here and keeps layers."""
        template = self.config.with_name("config-v3.toml.tmpl" if version > 2 else "config.toml.tmpl")
        where = self.where.format(config=self.config, template=template)
        return f"{where}\n\n{self.snippet(version)}\n{self.then}"

    def snippet(self, version: int) -> str:
        """The text to paste, for a configuration of this version."""
        plugin = f"plugins.{json.dumps(plugin_of(version))}"
        layers = f"[{plugin}{'' if version > 2 else '.containerd'}]\n  discard_unpacked_layers = false\n"
        folder = f"[{plugin}.registry]\n  config_path = {json.dumps(str(self.hosts_dir))}\n"
        match self.name:
            case DistroName.K3S | DistroName.RKE2:
                return '{{ template "base" . }}\n'
            case DistroName.EKS:
                return _EKS + indent(layers + folder, " " * 6)
            case DistroName.TALOS:
                return _TALOS + indent(layers, " " * 8)
        return f"version = {version}\n{layers}{folder}"


_EKS = """\
apiVersion: node.eks.aws/v1alpha1
kind: NodeConfig
spec:
  containerd:
    config: |
"""
_TALOS = """\
machine:
  files:
    - path: /etc/cri/conf.d/20-customization.part
      op: create
      content: |
"""
_IN_FILE = "In {config}; where a table is there already, put the line into it:"


def _rancher(name: DistroName) -> Distro:
    below = Path("/var/lib/rancher") / name / "agent/etc/containerd"
    return Distro(
        name,
        below / "certs.d",
        below / "config.toml",
        f"{name} sets config_path and keeps layers by itself, unless its template says otherwise. Remove {{template}}, "
        "or leave out of it all of registry and discard_unpacked_layers, so that it starts with the line:",
        f"then restart {name}. It writes the mirror files of what /etc/rancher/{name}/registries.yaml lists at each "
        "start: leave out there what is to go through Stafett, or run configure again after each start.",
    )


DISTROS = {
    distro.name: distro
    for distro in (
        Distro(
            DistroName.CONTAINERD,
            Path("/etc/containerd/certs.d"),
            Path("/etc/containerd/config.toml"),
            _IN_FILE,
            "then: systemctl restart containerd",
        ),
        _rancher(DistroName.K3S),
        _rancher(DistroName.RKE2),
        Distro(
            DistroName.EKS,
            Path("/etc/containerd/certs.d"),
            Path("/etc/containerd/config.toml"),
            "EKS discards layers. In the user data of the node group (Amazon Linux 2023):",
            "then replace the nodes.",
        ),
        Distro(
            DistroName.GKE,
            Path("/etc/containerd/hosts.d"),
            Path("/etc/containerd/config.toml"),
            f"GKE writes the file anew for each node: change it from a DaemonSet. {_IN_FILE}",
            "then: systemctl restart containerd",
        ),
        Distro(
            DistroName.TALOS,
            Path("/etc/cri/conf.d/hosts"),
            Path("/etc/cri/conf.d/cri.toml"),
            "Talos sets config_path, but discards layers. As a patch of the machine configuration:",
            "then: talosctl patch machineconfig --patch @patch.yaml",
        ),
    )
}


def distro_of(name: DistroName, hosts_dir: Path | None = None, config: Path | None = None) -> Distro:
    """Tell what is known of a distribution, with other paths where they are given."""
    usual = DISTROS[name]
    return replace(usual, hosts_dir=hosts_dir or usual.hosts_dir, config=config or usual.config)
