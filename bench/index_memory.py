"""How much Redis needs for what hosts hold: the trackers' own index, filled for many hosts."""

from __future__ import annotations

import argparse
import asyncio
import json
import random
from typing import cast

from stafett.cli.local_cluster.cluster import LocalCluster
from stafett.common.cluster import Announcement, HeldBlob
from stafett.common.digest import Digest
from stafett.common.topology import Topology
from stafett.tracker.holdings_store import HoldingsStore, Owner
from stafett.tracker.redis_link import RedisLink, RedisPlace

ANNOUNCED_AT_ONCE = 500
ZONES, RACKS = 3, 20


def main(arguments: list[str]) -> None:
    """Run and print; the last line is JSON."""
    parser = argparse.ArgumentParser(prog="python -m bench index-memory", description=__doc__)
    parser.add_argument("--hosts", type=int, default=100)
    parser.add_argument("--shared", type=int, default=400, help="blobs that every host has")
    parser.add_argument("--own", type=int, default=100, help="blobs that no other host has")
    chosen = parser.parse_args(arguments)
    with LocalCluster() as cluster:
        cluster.start_redis()
        used = asyncio.run(
            _measure(f"redis://127.0.0.1:{cluster.redis_port}/0", chosen.hosts, chosen.shared, chosen.own)
        )
    per_blob = used / (chosen.hosts * (chosen.shared + chosen.own))
    print(json.dumps({**vars(chosen), "redis_mb": round(used / 1e6, 1), "bytes_per_host_and_blob": round(per_blob)}))


async def _measure(url: str, hosts: int, shared: int, own: int) -> int:
    link = RedisLink(RedisPlace.parse(url))
    store = HoldingsStore(link, random.Random())
    before = await _used_bytes(link)
    for host in range(hosts):
        place = Topology("region", f"zone-{host % ZONES}", f"rack-{host % RACKS}")
        owner = Owner(f"ip-10-0-{host // 256}-{host % 256}.region.compute.internal", 1, host + 1, place)
        await store.open(owner)
        names = [f"shared {i}" for i in range(shared)] + [f"{host} {i}" for i in range(own)]
        blobs = tuple(HeldBlob(Digest.of(name.encode()), 50_000_000) for name in names)
        for begin in range(0, len(blobs), ANNOUNCED_AT_ONCE):
            await store.announce(owner, Announcement(holds=blobs[begin : begin + ANNOUNCED_AT_ONCE]))
    used = await _used_bytes(link) - before
    await link.close()
    return used


async def _used_bytes(link: RedisLink) -> int:
    [memory] = await link.commands([("INFO", "memory")])
    return int(cast(dict[str, int], memory)["used_memory"])
