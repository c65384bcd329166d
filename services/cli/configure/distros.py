"""Where distributions keep containerd's files, and what their users have to change where we cannot."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

_V2 = """\
    [plugins."io.containerd.grpc.v1.cri".registry]
      config_path = "{hosts_dir}"
    [plugins."io.containerd.grpc.v1.cri".containerd]
      discard_unpacked_layers = false"""
_BOTH = f"""\
  containerd 1.x (version = 2):
{_V2}
  containerd 2.x (version = 3):
    [plugins."io.containerd.cri.v1.images".registry]
      config_path = "{{hosts_dir}}"
    [plugins."io.containerd.cri.v1.images"]
      discard_unpacked_layers = false"""


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
    """Paths on a host, and how its containerd is told to use them and to keep layers."""

    hosts_dir: Path
    config: Path
    how: str

    def exact_change(self, hosts_dir: Path) -> str:
        """Tell what the operator has to change, if containerd's configuration is not as it has to be."""
        return self.how.format(hosts_dir=hosts_dir)


def _rancher(name: str) -> Distro:
    below = Path("/var/lib/rancher") / name / "agent/etc/containerd"
    how = (
        f"In {below}/config.toml.tmpl (config-v3.toml.tmpl for containerd 2), which starts with "
        '{{{{ template "base" . }}}}:\n'
        + _BOTH
        + f"\nthen restart {name}. {name} sets config_path itself, and writes the "
        f"files of registries that are listed in /etc/rancher/{name}/registries.yaml at each start: leave out there "
        "those that are to go through Stafett, or run configure again after each start."
    )
    return Distro(below / "certs.d", below / "config.toml", how)


DISTROS = {
    DistroName.CONTAINERD: Distro(
        Path("/etc/containerd/certs.d"),
        Path("/etc/containerd/config.toml"),
        "In /etc/containerd/config.toml:\n" + _BOTH + "\nthen: systemctl restart containerd",
    ),
    DistroName.K3S: _rancher("k3s"),
    DistroName.RKE2: _rancher("rke2"),
    DistroName.EKS: Distro(
        Path("/etc/containerd/certs.d"),
        Path("/etc/containerd/config.toml"),
        "EKS discards layers. In the user data of the node group (Amazon Linux 2023):\n"
        "  apiVersion: node.eks.aws/v1alpha1\n  kind: NodeConfig\n  spec:\n    containerd:\n      config: |\n" + _BOTH,
    ),
    DistroName.GKE: Distro(
        Path("/etc/containerd/hosts.d"),
        Path("/etc/containerd/config.toml"),
        "GKE sets config_path to {hosts_dir} only on newer node versions, and offers no setting for it: upgrade the "
        "nodes, or change /etc/containerd/config.toml from a DaemonSet that restarts containerd:\n" + _BOTH,
    ),
    DistroName.TALOS: Distro(
        Path("/etc/cri/conf.d/hosts"),
        Path("/etc/cri/conf.d/cri.toml"),
        "Talos discards layers. As a machine configuration patch (talosctl patch mc --patch @patch.yaml):\n"
        "  machine:\n    files:\n      - path: /etc/cri/conf.d/20-customization.part\n        op: create\n"
        "        content: |\n"
        '          [plugins."io.containerd.cri.v1.images"]\n            discard_unpacked_layers = false\n'
        "config_path is {hosts_dir} from the start.",
    ),
}
