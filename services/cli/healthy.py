"""`stafett healthy`: does the tracker, node or gateway in this container answer? Decides nothing about the cluster.

Settings are read as the part itself reads them, so the check follows a changed port, and shows the part's certificate.
"""

from __future__ import annotations

import asyncio
import http.client
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from stafett.common.cluster import Address
from stafett.common.errors import StartupFailed
from stafett.common.grpc_transport import TlsFiles, peer_channel
from stafett.common.settings import SettingsInvalid, load

EXIT_UNHEALTHY = 1
EXIT_USAGE = 2
CALL_SECONDS = 3.0
LOOPBACK = "127.0.0.1"
_ANY_ADDRESS = {"0.0.0.0": LOOPBACK, "::": "::1"}


def run_healthy(arguments: Sequence[str]) -> int:
    """Check the part that the arguments name, with its options after it; without any, the one that process 1 runs.

    Returns 0 if it answers and serves, 1 if not, 2 if there is no such part or its settings are wrong.
    """
    part, *options = arguments or part_of(Path("/proc/1/cmdline").read_bytes()) or [""]
    if part not in _CHECKS:
        print(f"name one of {', '.join(_CHECKS)}: process 1 of this container is none of them", file=sys.stderr)
        return EXIT_USAGE
    try:
        what, healthy = _CHECKS[part](options)
    except SettingsInvalid as error:
        print(error, file=sys.stderr)
        return EXIT_USAGE
    except StartupFailed as error:
        print(error, file=sys.stderr)
        return EXIT_UNHEALTHY
    print(f"{part} at {what} {'serves' if healthy else 'does not serve'}")
    return 0 if healthy else EXIT_UNHEALTHY


def part_of(command_line: bytes) -> list[str]:
    """Read the part and its options from a process's command line, NUL-separated; empty if it is no part of ours."""
    words = command_line.decode("utf-8", "replace").rstrip("\0").split("\0")
    for number, word in enumerate(words[:-1]):
        if Path(word).name == "stafett" and words[number + 1] in _CHECKS:
            return words[number + 1 :]
    return []


def _check_tracker(options: list[str]) -> tuple[str, bool]:
    from stafett.tracker.settings import TrackerSettings

    settings = load(TrackerSettings, options, "stafett tracker")
    return _ask_grpc(settings.advertise_host, settings.listen_host, settings.listen_port, settings.tls)


def _check_node(options: list[str]) -> tuple[str, bool]:
    from stafett.node.settings import NodeSettings

    settings = load(NodeSettings, options, "stafett node")
    return _ask_grpc(settings.advertise_host, settings.listen_host, settings.listen_port, settings.tls)


def _check_gateway(options: list[str]) -> tuple[str, bool]:
    from stafett.gateway.settings import GatewaySettings

    port = load(GatewaySettings, options, "stafett gateway").listen_port
    connection = http.client.HTTPConnection(LOOPBACK, port, timeout=CALL_SECONDS)
    try:
        connection.request("GET", "/healthz")
        return f"{LOOPBACK}:{port}", connection.getresponse().status == 200
    except OSError:
        return f"{LOOPBACK}:{port}", False
    finally:
        connection.close()


def _ask_grpc(advertised: str, listening: str, port: int, tls: TlsFiles | None) -> tuple[str, bool]:
    """Ask by the name that the others use, as that is the one in the certificate."""
    address = Address(advertised or _ANY_ADDRESS.get(listening, listening), port)
    return address.target(), asyncio.run(_serves(address, tls))


async def _serves(address: Address, tls: TlsFiles | None) -> bool:
    async with peer_channel(address, tls) as channel:
        check = health_pb2_grpc.HealthStub(channel).Check  # type: ignore[attr-defined]
        try:
            answer = await check(health_pb2.HealthCheckRequest(), timeout=CALL_SECONDS)
        except grpc.aio.AioRpcError:
            return False
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


_CHECKS: dict[str, Callable[[list[str]], tuple[str, bool]]] = {
    "tracker": _check_tracker,
    "node": _check_node,
    "gateway": _check_gateway,
}
