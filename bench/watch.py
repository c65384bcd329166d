"""How soon every gateway hears that a node's state has changed: Watch streams over two tracker replicas, real gRPC."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import time
from dataclasses import dataclass, field
from statistics import median

import grpc

from stafett.api.v1 import tracker_pb2, tracker_pb2_grpc, types_pb2
from stafett.cli.local_cluster.cluster import LocalCluster
from stafett.cli.local_cluster.processes import wait_until

DELIVERY_SECONDS = 10.0


@dataclass
class Listener:
    """One gateway's stream; remembers when it last heard of a change."""

    stub: tracker_pb2_grpc.TrackerServiceAsyncStub
    heard_at: float | None = None
    ready: asyncio.Event = field(default_factory=asyncio.Event)
    news: asyncio.Event = field(default_factory=asyncio.Event)

    async def listen(self) -> None:
        """Follow the stream until cancelled."""
        async for step in self.stub.Watch(tracker_pb2.WatchRequest(), timeout=600):
            if step.HasField("snapshot"):
                self.ready.set()
            elif step.HasField("changed"):
                self.heard_at = time.monotonic()
                self.news.set()


def main(arguments: list[str]) -> None:
    """Run and print; the last line is JSON."""
    parser = argparse.ArgumentParser(prog="python -m bench watch", description=__doc__)
    parser.add_argument("--gateways", type=int, default=100)
    parser.add_argument("--changes", type=int, default=30)
    chosen = parser.parse_args(arguments)
    with LocalCluster() as cluster:
        cluster.start_redis()
        for _ in range(2):
            cluster.start_tracker()
        host = cluster.add_host("changing", zone="a")
        cluster.start_node(host)
        targets = [f"127.0.0.1:{tracker.port}" for tracker in cluster.trackers]
        wait_until(lambda: _node_known(targets[0], host.name), "the node to be registered")
        delays = asyncio.run(_measure(targets, host.name, chosen.gateways, chosen.changes))
    delays.sort()
    result = {
        "gateways": chosen.gateways,
        "changes": chosen.changes,
        "delivered": len(delays),
        "lost": chosen.gateways * chosen.changes - len(delays),
        "median_seconds": round(median(delays), 4),
        "p99_seconds": round(delays[int(len(delays) * 0.99)], 4),
        "max_seconds": round(delays[-1], 4),
    }
    print(json.dumps(result))


def _node_known(target: str, node_id: str) -> bool:
    with grpc.insecure_channel(target) as channel:
        answer = tracker_pb2_grpc.TrackerServiceStub(channel).ListNodes(tracker_pb2.ListNodesRequest(), timeout=5)
    return any(node.id == node_id and node.state == types_pb2.NODE_STATE_READY for node in answer.nodes)


async def _measure(targets: list[str], node_id: str, gateways: int, changes: int) -> list[float]:
    """Drain a node and bring it back in turn; return the seconds from each request to each gateway's hearing of it."""
    options = [("grpc.use_local_subchannel_pool", 1)]
    channels = [grpc.aio.insecure_channel(targets[number % len(targets)], options) for number in range(gateways)]
    listeners = [Listener(tracker_pb2_grpc.TrackerServiceStub(channel)) for channel in channels]
    delays: list[float] = []
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(listener.listen()) for listener in listeners]
            await asyncio.gather(*(listener.ready.wait() for listener in listeners))
            for number in range(changes):
                for listener in listeners:
                    listener.heard_at = None
                    listener.news.clear()
                started_at = time.monotonic()
                order = tracker_pb2.DrainNodeRequest(node_id=node_id, draining=number % 2 == 0)
                await listeners[number % gateways].stub.DrainNode(order, timeout=5)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(DELIVERY_SECONDS):
                        await asyncio.gather(*(listener.news.wait() for listener in listeners))
                delays += [listener.heard_at - started_at for listener in listeners if listener.heard_at]
            for task in tasks:
                task.cancel()
    finally:
        for channel in channels:
            await channel.close()
    return delays
