from __future__ import annotations

import asyncio

import pytest

from stafett.common.errors import Unavailable
from stafett.tracker.redis_link import RedisLink, RedisPlace
from tests.integration.valkey import ValkeyServer


@pytest.mark.parametrize("steps", range(0, 40))
async def test_a_cancellation_is_never_swallowed(valkey: ValkeyServer, steps: int) -> None:
    link = RedisLink(RedisPlace.parse(valkey.url))

    async def use_it() -> None:
        while True:
            await link.commands([("PING",)])

    task = asyncio.create_task(use_it())
    for _ in range(steps):
        await asyncio.sleep(0)
    task.cancel()
    done, _ = await asyncio.wait([task], timeout=5)
    assert done
    assert task.cancelled()
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
