"""The Prometheus endpoint: what it answers, and what it does not let happen to its part."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import pytest
from prometheus_client import CollectorRegistry

from stafett.cli.local_cluster.parts import run
from stafett.common.cluster import Address
from stafett.common.errors import StartupFailed
from stafett.common.metrics import gauge, new_registry
from stafett.common.metrics_endpoint import CONNECTIONS_MAX, metrics_endpoint

HERE = Address("127.0.0.1", 0)


@contextlib.contextmanager
def taken_port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def ask(port: int, path: str = "/metrics", method: str = "GET", host: str = "127.0.0.1") -> httpx2.Response:
    return httpx2.request(method, f"http://{host}:{port}{path}", trust_env=False, timeout=10)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_it_gives_the_metrics_and_nothing_else(host: str) -> None:
    async with metrics_endpoint(new_registry(), Address(host, 0)) as port:
        url_host = Address(host, port).target().rpartition(":")[0]
        answer = await asyncio.to_thread(ask, port, host=url_host)
        assert answer.status_code == 200
        assert "process_resident_memory_bytes" in answer.text
        assert (await asyncio.to_thread(ask, port, "/", host=url_host)).status_code == 404
        assert (await asyncio.to_thread(ask, port, "/metrics/x", host=url_host)).status_code == 404
        assert (await asyncio.to_thread(ask, port, method="POST", host=url_host)).status_code == 501


async def test_a_scrape_does_not_wait_for_the_event_loop() -> None:
    async with metrics_endpoint(new_registry(), HERE) as port:
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(ask, port).result(timeout=10).status_code == 200  # the loop stands still meanwhile


async def test_beyond_the_limit_connections_are_closed_until_one_is_free() -> None:
    async with metrics_endpoint(new_registry(), HERE) as port:
        idle = [socket.create_connection(("127.0.0.1", port)) for _ in range(CONNECTIONS_MAX)]
        with socket.create_connection(("127.0.0.1", port), timeout=10) as one_more:
            assert await asyncio.to_thread(one_more.recv, 1) == b""
        for connection in idle:
            connection.close()
        async with asyncio.timeout(10):
            while True:
                with contextlib.suppress(httpx2.TransportError):
                    if (await asyncio.to_thread(ask, port)).status_code == 200:
                        break


async def test_a_figure_that_cannot_be_read_ends_one_scrape_only() -> None:
    registry = CollectorRegistry()
    broken = True

    class Moody:
        def collect(self) -> Iterator[object]:
            if broken:
                raise ValueError("not now")
            yield gauge("mood", "As it says.", 1)

        def describe(self) -> list[object]:
            return []

    registry.register(Moody())  # type: ignore[arg-type]
    async with metrics_endpoint(registry, HERE) as port:
        with pytest.raises(httpx2.TransportError):
            await asyncio.to_thread(ask, port)
        broken = False
        assert "mood 1.0" in (await asyncio.to_thread(ask, port)).text


async def test_its_port_is_free_again_afterwards() -> None:
    async with metrics_endpoint(new_registry(), HERE) as port:
        pass
    async with metrics_endpoint(new_registry(), Address("127.0.0.1", port)) as again:
        assert again == port


async def test_a_taken_port_is_told() -> None:
    with (
        taken_port() as port,
        pytest.raises(StartupFailed, match=f"metrics on 127.0.0.1:{port}: Address already in use"),
    ):
        async with metrics_endpoint(new_registry(), Address("127.0.0.1", port)):
            pass


@pytest.mark.parametrize("part", ["tracker", "node", "gateway"])
def test_no_part_starts_without_its_metrics_port(part: str, tmp_path: Path) -> None:
    ports = {
        "tracker": ["--listen-port=0"],
        "node": ["--listen-port=0"],
        "gateway": ["--listen-port=0", "--tag-port=0"],
    }
    store = ["--store=oci-layout", f"--content-root={tmp_path}"] if part == "node" else []
    with taken_port() as port:
        done = run([sys.executable, "-m", "stafett", part, f"--metrics-port={port}", *ports[part], *store], 30)
    assert done.returncode == 1
    assert f"stafett {part}: cannot serve metrics on 127.0.0.1:{port}" in done.stderr
    assert "Traceback" not in done.stderr
