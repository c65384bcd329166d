"""A Docker engine of the tests' own: everything that it starts and mounts lives in its namespaces and goes with it."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from stafett.cli.local_cluster.processes import Process, Processes, wait_until

ROOT = Path(__file__).parents[2]
DOCKER = "/usr/bin/docker"
"""Debian's, which brings its own BuildKit client; another one on the PATH may lack it."""
START_SECONDS = 60.0
STOP_SECONDS = 60.0
_HIDDEN = ("/run/containerd", "/run/docker", "/etc/docker")
"""Where the engine writes whatever it is told: made private to it."""
_SETTINGS = ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL")


@dataclass
class Engine:
    """One engine, whose images outlive a restart. `isolated`: with a network of its own, else with the machine's."""

    directory: Path
    processes: Processes
    isolated: bool = False
    process: Process | None = None

    @property
    def host(self) -> str:
        """Its address for DOCKER_HOST."""
        return f"unix://{self.directory}/docker.sock"

    def start(self, *, isolated: bool) -> None:
        """Start it. Isolated it can publish any port and make any network; only otherwise builds reach a registry."""
        self.isolated = isolated
        network = [] if isolated else ["--bridge=none", "--iptables=false"]
        paths = [f"--data-root={self.directory}/data", f"--exec-root={self.directory}/exec"]
        paths += [f"--pidfile={self.directory}/docker.pid", f"--host={self.host}", f"--cgroup-parent={self._cgroup}"]
        hide = " && ".join(f"mkdir -p {path} && mount -t tmpfs none {path}" for path in _HIDDEN)
        script = f'{hide} && ip link set lo up && exec docker-init -- dockerd "$@"'
        spaces = ["--mount", "--pid", "--fork", "--kill-child", "--mount-proc", *(["--net"] if isolated else [])]
        command = ["unshare", *spaces, "sh", "-c", script, "sh", *paths, *network]
        self.process = self.processes.start("dockerd", command)
        wait_until(self._answers, "dockerd answers", START_SECONDS)

    def stop(self) -> None:
        """End it with all its containers, and remove their control groups."""
        if self.process is not None and self.process.alive:
            for child in self._children:
                os.kill(child, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.popen.wait(STOP_SECONDS)
            self.process.kill()  # and with it whatever is still in its namespaces
        for top in Path("/sys/fs/cgroup").glob(f"*{self._cgroup}"):
            for folder in sorted([top, *(path for path in top.rglob("*") if path.is_dir())], reverse=True):
                folder.rmdir()

    def run(
        self, *command: str | Path, check: bool = True, environment: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a program in the repository, as one who uses this engine, and in its network."""
        inside = ["nsenter", f"--net=/proc/{self._children[0]}/ns/net"] if self.isolated else []
        variables = {
            **os.environ,
            "DOCKER_HOST": self.host,
            "DOCKER_BUILDKIT": "1",
            "PATH": f"/usr/bin:{os.environ['PATH']}",
        }
        done = subprocess.run(
            [*inside, *map(str, command)],
            cwd=ROOT,
            env={**variables, **(environment or {})},
            capture_output=True,
            text=True,
            check=False,
        )
        assert not check or done.returncode == 0, f"{command}:\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
        return done

    @property
    def _cgroup(self) -> str:
        return f"/{self.directory.name}"

    @property
    def _children(self) -> list[int]:
        """The engine's first process, as this machine numbers it; none before it is there."""
        assert self.process is not None
        pid = self.process.pid
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    def _answers(self) -> bool:
        return bool(self._children) and self.run(DOCKER, "version", check=False).returncode == 0


def make_images(engine: Engine) -> str:
    """Make the images of docker-compose.yml without a registry; return what `make image` says.

    Debian's base system stands in for the bases of our Dockerfiles, its packages for the images of others, and a few
    lines of ours for Jaeger. Nothing stands in for Grafana.
    """
    base = engine.directory / "base"
    include = "--include=ca-certificates,python3,python3-venv"
    engine.run("debootstrap", "--variant=minbase", include, "bookworm", base)
    engine.run("sh", "-c", f"rm -rf {base}/var/cache/apt/archives/*.deb {base}/var/lib/apt/lists/*")
    debian, python = base_of("deploy/compose/host.Dockerfile"), base_of("deploy/Dockerfile")
    engine.run("sh", "-c", f"tar -C {base} -c . | {DOCKER} import - {debian}")
    engine.run(DOCKER, "tag", debian, python)
    printed = engine.run(
        "make", "-s", "image", f"DOCKER={DOCKER}", "ARGS=--network host", *package_index(engine.directory)
    )
    build = (DOCKER, "build", "-q", "--network", "host")
    versions = dict(
        line.split("=", 1) for line in (ROOT / ".env").read_text().splitlines() if re.match(r"[A-Z_]+=", line)
    )
    host = f"stafett-host:{versions['STAFETT_VERSION']}"
    engine.run(*build, "-t", host, "-f", "deploy/compose/host.Dockerfile", "deploy/compose")
    for target, name in (
        ("redis", f"redis:{versions['REDIS_VERSION']}"),
        ("registry", f"registry:{versions['REGISTRY_VERSION']}"),
        ("prometheus", f"prom/prometheus:{versions['PROMETHEUS_VERSION']}"),
        ("jaeger", f"jaegertracing/jaeger:{versions['JAEGER_VERSION']}"),
    ):
        bases = (f"--build-arg=BASE={debian}", f"--build-arg=STAFETT=stafett:{versions['STAFETT_VERSION']}")
        stand_in = (f"--target={target}", "-f", "tests/compose/stand-ins.Dockerfile")
        engine.run(*build, "-t", name, *bases, *stand_in, "tests")
    return printed.stdout


def base_of(dockerfile: str) -> str:
    """Name of the image that a Dockerfile builds on."""
    found = re.search(r"^ARG BASE=(\S+)$", (ROOT / dockerfile).read_text(), re.MULTILINE)
    assert found is not None
    return found[1]


def package_index(directory: Path) -> list[str]:
    """Tell `make image` how this machine reaches its package index: a private authority, another address."""
    found = []
    if bundle := os.environ.get("PIP_CERT") or os.environ.get("SSL_CERT_FILE"):
        found.append(f"CA_BUNDLE={bundle}")
    lines = [f"{name[4:].lower().replace('_', '-')} = {os.environ[name]}" for name in _SETTINGS if name in os.environ]
    if lines:
        config = directory / "pip.conf"
        config.write_text("\n".join(["[global]", *lines, ""]))
        found.append(f"PIP_CONF={config}")
    return found
