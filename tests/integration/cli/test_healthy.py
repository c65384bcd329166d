"""`stafett healthy` against real gRPC and HTTP servers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trustme
from grpc_health.v1.health_pb2 import HealthCheckResponse

from stafett.cli.healthy import EXIT_UNHEALTHY, EXIT_USAGE, part_of, run_healthy
from stafett.cli.local_cluster.processes import free_port
from stafett.common.cluster import Address
from stafett.common.grpc_transport import TlsFiles, bind, new_server

SERVING, NOT_SERVING = HealthCheckResponse.SERVING, HealthCheckResponse.NOT_SERVING


@asynccontextmanager
async def grpc_part(status: int, tls: TlsFiles | None = None) -> AsyncIterator[int]:
    """A server with the health service alone."""
    server, health = new_server()
    port = bind(server, Address("127.0.0.1", 0), tls)
    await health.set("", status)
    await server.start()
    try:
        yield port
    finally:
        await server.stop(0)


async def checked(*arguments: str | int | Path) -> int:
    return await asyncio.to_thread(run_healthy, [str(argument) for argument in arguments])


@pytest.mark.parametrize("part", ["tracker", "node"])
@pytest.mark.parametrize(("status", "code"), [(SERVING, 0), (NOT_SERVING, EXIT_UNHEALTHY)])
async def test_a_part_is_as_healthy_as_it_says(part: str, status: int, code: int) -> None:
    async with grpc_part(status) as port:
        assert await checked(part, "--listen-port", port) == code
        assert await checked(part, "--listen-host", "0.0.0.0", "--listen-port", port) == code


@pytest.mark.parametrize("part", ["tracker", "node", "gateway"])
async def test_a_part_that_does_not_answer_is_not_healthy(part: str) -> None:
    assert await checked(part, "--listen-port", free_port()) == EXIT_UNHEALTHY


async def test_with_certificates_it_asks_by_the_advertised_name(tmp_path: Path) -> None:
    authority = trustme.CA()
    issued = authority.issue_cert("localhost")
    files = TlsFiles(tmp_path / "tls.crt", tmp_path / "tls.key", tmp_path / "ca.crt")
    issued.cert_chain_pems[0].write_to_path(files.certificate)
    issued.private_key_pem.write_to_path(files.key)
    authority.cert_pem.write_to_path(files.authority)
    options = ("--tls-certificate", files.certificate, "--tls-key", files.key, "--tls-authority", files.authority)
    async with grpc_part(SERVING, files) as port:
        assert await checked("node", "--advertise-host", "localhost", "--listen-port", port, *options) == 0
        assert await checked("node", "--listen-port", port, *options) == EXIT_UNHEALTHY
        assert await checked("node", "--advertise-host", "localhost", "--listen-port", port) == EXIT_UNHEALTHY


@pytest.mark.parametrize(("answer", "code"), [("200 OK", 0), ("503 Service Unavailable", EXIT_UNHEALTHY)])
async def test_a_gateway_is_asked_on_its_mirror_port(answer: str, code: int) -> None:
    async def respond(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked = await reader.readline()
        line = answer if asked.startswith(b"GET /healthz ") else "404 Not Found"
        writer.write(f"HTTP/1.1 {line}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode())
        writer.close()

    async with await asyncio.start_server(respond, "127.0.0.1", 0) as server:
        assert await checked("gateway", "--listen-port", server.sockets[0].getsockname()[1]) == code


def test_an_unknown_part_and_wrong_settings_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_healthy(["registry"]) == EXIT_USAGE
    assert "tracker, node, gateway" in capsys.readouterr().err
    assert run_healthy(["node", "--listen-port", "many"]) == EXIT_USAGE
    assert "STAFETT_NODE_LISTEN_PORT" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command_line", "part"),
    [
        ("/opt/bin/python\0/opt/bin/stafett\0node\0--listen-port\0009\0", ["node", "--listen-port", "9"]),
        ("python3\0-m\0stafett\0gateway\0", ["gateway"]),
        ("/sbin/docker-init\0--\0stafett\0tracker\0", ["tracker"]),
        ("stafett\0nodes\0", []),
        ("stafett\0", []),
        ("sh\0-c\0node\0", []),
        ("", []),
    ],
)
def test_the_part_is_read_from_the_first_process(command_line: str, part: list[str]) -> None:
    assert part_of(command_line.encode()) == part
