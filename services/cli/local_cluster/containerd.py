"""Private containerds: own root, state and socket, nothing shared with one that the machine may run."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from stafett.cli.configure.changing import carry_out
from stafett.cli.configure.hosts_toml import Gateway, Registry
from stafett.cli.configure.mirror_files import changes_for
from stafett.cli.local_cluster.parts import run
from stafett.cli.local_cluster.processes import HERE, Place, Process, Processes
from stafett.common.errors import StartupFailed

_CONFIG = """\
version = 2
root = "{directory}/root"
state = "{directory}/state"
oom_score = 0
disabled_plugins = [{disabled}]
[grpc]
  address = "{directory}/containerd.sock"
[ttrpc]
  address = "{directory}/containerd.sock.ttrpc"
[plugins."io.containerd.grpc.v1.cri".registry]
  config_path = "{directory}/certs.d"
"""
_NOT_NEEDED = (
    "io.containerd.internal.v1.opt",
    "io.containerd.snapshotter.v1.aufs",
    "io.containerd.snapshotter.v1.btrfs",
    "io.containerd.snapshotter.v1.devmapper",
    "io.containerd.snapshotter.v1.zfs",
    "io.containerd.tracing.processor.v1.otlp",
    "io.containerd.internal.v1.tracing",
)
_CRI = "io.containerd.grpc.v1.cri"
SOCKET_PATH_MAX = 106
"""Characters, by containerd's own check."""


def containerd_available() -> bool:
    """Tell whether private containerds can run here: root, and the binaries."""
    return os.geteuid() == 0 and all(shutil.which(name) for name in ("containerd", "ctr"))


@dataclass
class Containerd:
    """One private containerd below `directory` (a short path: unix sockets allow about 100 characters)."""

    directory: Path
    cri: bool = False
    place: Place = HERE
    process: Process | None = None

    @property
    def socket(self) -> Path:
        return self.directory / "containerd.sock"

    @property
    def content_root(self) -> Path:
        return self.directory / "root" / "io.containerd.content.v1.content"

    @property
    def hosts_dir(self) -> Path:
        """Its certs.d folder."""
        return self.directory / "certs.d"

    def start(self, processes: Processes, name: str) -> Process:
        """Start it (again) and wait until it answers.

        Raises:
            StartupFailed: if it does not start, or its directory's path is too long for a socket.
        """
        if len(f"{self.socket}.ttrpc") > SOCKET_PATH_MAX:
            raise StartupFailed(f"{self.directory} is too long a path for a socket: set TMPDIR to a shorter one")
        self.hosts_dir.mkdir(parents=True, exist_ok=True)
        disabled = ", ".join(f'"{plugin}"' for plugin in (*_NOT_NEEDED, *(() if self.cri else (_CRI,))))
        config = self.directory / "config.toml"
        config.write_text(_CONFIG.format(directory=self.directory, disabled=disabled))
        command: list[str | Path] = [*self.place.prefix, "containerd", "--config", config]
        self.process = processes.start(name, command, ready=self._answers)
        return self.process

    def write_hosts(self, registry: str, gateway: str, upstream: str, tag_port_url: str) -> None:
        """Configure it for one registry, as `stafett configure` does: gateway first, upstream, then the tag port."""
        wanted = [Registry(registry, upstream)]
        carry_out(self.hosts_dir, changes_for(self.hosts_dir, wanted, Gateway(gateway, tag_port_url)))

    def ctr(self, *arguments: str, timeout_seconds: float = 120.0) -> subprocess.CompletedProcess[str]:
        """Run ctr against it, in the namespace "default" unless told otherwise."""
        return run(self.ctr_command(*arguments), timeout_seconds)

    def ctr_command(self, *arguments: str) -> list[str | Path]:
        """The words that run ctr against it."""
        return [*self.place.prefix, "ctr", "--address", self.socket, *arguments]

    def pull(self, image: str, *options: str, timeout_seconds: float = 120.0) -> subprocess.CompletedProcess[str]:
        """Pull through the configured hosts."""
        return self.ctr(
            "images", "pull", "--hosts-dir", str(self.hosts_dir), *options, image, timeout_seconds=timeout_seconds
        )

    def unmount(self) -> None:
        """Detach mounts that an unpack may have left below its directory."""
        for line in Path("/proc/self/mounts").read_text().splitlines():
            target = line.split()[1]
            if target.startswith(str(self.directory)):
                run(["umount", "--lazy", target])

    def _answers(self) -> bool:
        return self.ctr("version", timeout_seconds=5.0).returncode == 0
