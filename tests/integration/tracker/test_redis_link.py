from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import trustme

from stafett.cli.local_cluster.processes import free_port
from stafett.common.errors import Unavailable
from stafett.common.settings import load
from stafett.tracker.redis_link import RedisLink, RedisPlace
from stafett.tracker.settings import TrackerSettings
from tests.integration.tls import write_identity
from tests.integration.valkey import ValkeyServer


async def test_a_cancellation_is_never_swallowed(valkey: ValkeyServer) -> None:
    for steps in range(40):
        link = RedisLink(RedisPlace.parse(valkey.url))

        async def use_it(link: RedisLink = link) -> None:
            while True:
                await link.commands([("PING",)])

        task = asyncio.create_task(use_it())
        for _ in range(steps):
            await asyncio.sleep(0)
        task.cancel()
        done, _ = await asyncio.wait([task], timeout=5)
        assert done, steps
        assert task.cancelled(), steps
        await link.close()


async def test_after_a_lost_connection_the_next_call_succeeds(valkey: ValkeyServer) -> None:
    link = RedisLink(RedisPlace.parse(valkey.url))
    await link.commands([("PING",)])
    await valkey.kill()
    await valkey.start()
    assert await link.commands([("PING",)]) == [True]
    assert link.available
    await link.close()


async def test_a_frozen_redis_is_unavailable(valkey: ValkeyServer) -> None:
    link = RedisLink(RedisPlace.parse(valkey.url))
    await link.commands([("PING",)])
    valkey.freeze()
    with pytest.raises(Unavailable):
        await link.commands([("PING",)])
    seen = [link.available]
    valkey.thaw()
    await link.commands([("PING",)])
    assert [*seen, link.available] == [False, True]
    await link.close()


@pytest.mark.needs_program("redis-server")
@pytest.mark.parametrize("shown", [True, False])
async def test_redis_and_tracker_show_each_other_certificates(tmp_path: Path, shown: bool) -> None:
    files = write_identity(tmp_path, trustme.CA(), "127.0.0.1")
    port = free_port()
    options = ["--bind", "127.0.0.1", "--dir", str(tmp_path), "--tls-port", str(port), "--tls-auth-clients", "yes"]
    options += ["--tls-cert-file", str(files.certificate), "--tls-key-file", str(files.key)]
    options += ["--tls-ca-cert-file", str(files.authority)]
    own = ["--tls-certificate", str(files.certificate), "--tls-key", str(files.key)] if shown else []
    own += ["--tls-authority", str(files.authority)] if shown else []
    words = ["--redis-url", f"rediss://127.0.0.1:{port}/0", "--redis-authority", str(files.authority), *own]
    settings = load(TrackerSettings, words, "stafett tracker")
    async with ValkeyServer(tmp_path, program="redis-server", options=options):
        link = RedisLink(settings.redis_place)
        if shown:
            assert await link.commands([("PING",)]) == [True]
        else:
            with pytest.raises(Unavailable):
                await link.commands([("PING",)])
        await link.close()


@pytest.mark.needs_program("redis-server")
async def test_a_redis_of_another_authority_is_not_believed(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    files, other = (
        write_identity(tmp_path, trustme.CA(), "127.0.0.1"),
        write_identity(tmp_path / "other", trustme.CA(), "x"),
    )
    port = free_port()
    options = ["--bind", "127.0.0.1", "--dir", str(tmp_path), "--tls-port", str(port), "--tls-auth-clients", "no"]
    options += ["--tls-cert-file", str(files.certificate), "--tls-key-file", str(files.key)]
    options += ["--tls-ca-cert-file", str(files.authority)]
    words = ["--redis-url", f"rediss://127.0.0.1:{port}/0", "--redis-authority", str(other.authority)]
    async with ValkeyServer(tmp_path, program="redis-server", options=options):
        link = RedisLink(load(TrackerSettings, words, "stafett tracker").redis_place)
        with pytest.raises(Unavailable):
            await link.commands([("PING",)])
        await link.close()
