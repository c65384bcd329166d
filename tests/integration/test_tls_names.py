"""Whose certificate is believed: parts that share one are reached under addresses that are not in it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import grpc
import pytest
import trustme
from grpc_health.v1 import health_pb2, health_pb2_grpc

from stafett.common.cluster import Address
from stafett.common.grpc_transport import TlsFiles, bind, blocking_tracker_channel, new_server, peer_channel
from tests.integration.tls import write_identity

HELD = "stafett.cluster"


@pytest.fixture
def identity(tmp_path: Path) -> TlsFiles:
    return write_identity(tmp_path, trustme.CA(), HELD)


@pytest.fixture
async def server(identity: TlsFiles) -> AsyncIterator[Address]:
    server, health = new_server()
    port = bind(server, Address("127.0.0.1", 0), identity)
    await server.start()
    for name in ("", "stafett.api.v1.TrackerService"):
        await health.set(name, health_pb2.HealthCheckResponse.SERVING)
    yield Address("127.0.0.1", port)
    await server.stop(None)


async def asks(address: Address, tls: TlsFiles) -> grpc.StatusCode:
    async with peer_channel(address, tls) as channel:
        try:
            await health_pb2_grpc.HealthStub(channel).Check(  # type: ignore[attr-defined]
                health_pb2.HealthCheckRequest(), timeout=5
            )
        except grpc.aio.AioRpcError as error:
            return error.code()
    return grpc.StatusCode.OK


@pytest.mark.parametrize(
    ("peer_name", "code"),
    [(HELD, grpc.StatusCode.OK), ("", grpc.StatusCode.UNAVAILABLE), ("other.cluster", grpc.StatusCode.UNAVAILABLE)],
)
async def test_the_name_is_checked_in_place_of_the_address(
    server: Address, identity: TlsFiles, peer_name: str, code: grpc.StatusCode
) -> None:
    assert await asks(server, replace(identity, peer_name=peer_name)) is code


async def test_the_name_does_not_replace_the_authority(server: Address, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    stranger = write_identity(tmp_path / "other", trustme.CA(), HELD, peer_name=HELD)
    assert await asks(server, stranger) is grpc.StatusCode.UNAVAILABLE


async def test_commands_check_the_name_too(server: Address, identity: TlsFiles) -> None:
    def ask(peer_name: str) -> None:
        with blocking_tracker_channel(f"ipv4:{server.target()}", replace(identity, peer_name=peer_name)) as channel:
            call = health_pb2_grpc.HealthStub(channel).Check  # type: ignore[attr-defined]
            call(health_pb2.HealthCheckRequest(), timeout=5)

    await asyncio.to_thread(ask, HELD)
    with pytest.raises(grpc.RpcError, match="Hostname Verification"):
        await asyncio.to_thread(ask, "other.cluster")
