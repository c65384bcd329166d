"""Many nodes that only keep their sessions and announce what they hold: a large cluster on a small machine."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Collection, Coroutine, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import grpc

from stafett.api.v1 import tracker_pb2_grpc
from stafett.common.digest import Digest
from tests.chaos.soak_bed import NO_PROXY
from tests.integration.tracker.cluster import LivingNode

HELD = Digest.of(b"what each of them holds")
BEAT_SECONDS = 1.0
CALL_SECONDS = 30.0
NOBODY_LISTENS = 1
"""A port on which no probe is answered."""


@dataclass(frozen=True)
class _Reached:
    stub: tracker_pb2_grpc.TrackerServiceAsyncStub


class Crowd:
    """`names` live until they vanish, spread over the trackers, in a thread of their own. A context manager."""

    def __init__(self, tracker_ports: Sequence[int], count: int) -> None:
        self.names = [f"crowd{number:02}" for number in range(count)]
        self._ports = tracker_ports
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="crowd")
        self._channels: list[grpc.aio.Channel] = []
        self._lives: dict[str, asyncio.Task[None]] = {}

    def __enter__(self) -> Crowd:
        self._thread.start()
        self._call(self._begin())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.vanish(list(self._lives))
        self._call(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(CALL_SECONDS)
        self._loop.close()

    def vanish(self, names: Collection[str]) -> None:
        """Let nodes break off in the middle of whatever they do."""
        self._call(self._end([self._lives.pop(name) for name in names]))

    async def _begin(self) -> None:
        self._channels = [grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=NO_PROXY) for port in self._ports]
        reached = [_Reached(tracker_pb2_grpc.TrackerServiceStub(channel)) for channel in self._channels]
        for number, name in enumerate(self.names):
            turned = reached[number % len(reached) :] + reached[: number % len(reached)]
            node = LivingNode(turned, name, [HELD], interval_seconds=BEAT_SECONDS, port=NOBODY_LISTENS)
            self._lives[name] = asyncio.create_task(node.live())

    async def _end(self, lives: Sequence[asyncio.Task[None]]) -> None:
        for life in lives:
            life.cancel()
        await asyncio.gather(*lives, return_exceptions=True)

    async def _close(self) -> None:
        for channel in self._channels:
            await channel.close()

    def _call(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(CALL_SECONDS)
