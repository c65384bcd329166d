"""Trackers in this process, and nodes that talk to them over real gRPC as a node would."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Protocol, Self

import grpc

from stafett.api.v1 import tracker_pb2, tracker_pb2_grpc, types_pb2
from stafett.common import wire
from stafett.common.cluster import HeldBlob, HeldImage, Holder, Node, NodeState
from stafett.common.digest import Digest
from stafett.common.inventory import Inventory
from stafett.common.topology import Topology
from stafett.tracker.app import serve
from stafett.tracker.settings import TrackerSettings

WITHIN_SECONDS = 20.0
INTERVAL_SECONDS = 0.2
SILENCE_SECONDS = 1.5
"""A tracker that says nothing for so long is left for the next."""


async def eventually(condition: Callable[[], Awaitable[bool]]) -> None:
    """Wait until a condition holds; fail after a time that no working system needs."""
    async with asyncio.timeout(WITHIN_SECONDS):
        while not await condition():  # noqa: ASYNC110
            await asyncio.sleep(0.05)


class RunningTracker:
    """One tracker replica and a stub to talk to it."""

    def __init__(self, port: int, channel: grpc.aio.Channel, stopping: asyncio.Event, task: asyncio.Task[None]) -> None:
        self.port = port
        self.stub = tracker_pb2_grpc.TrackerServiceStub(channel)
        self.channel = channel
        self._stopping = stopping
        self._task = task

    @classmethod
    async def start(cls, redis_url: str, **changes: float) -> Self:
        base = {
            "listen_port": 0,
            "metrics_port": 0,
            "lease_ttl_seconds": 1.5,
            "heartbeat_interval_seconds": INTERVAL_SECONDS,
        }
        chosen = TrackerSettings(redis_url=redis_url, **{**base, **changes})  # type: ignore[arg-type]
        stopping = asyncio.Event()
        listening: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        task = asyncio.create_task(serve(chosen, stopping, listening))

        def failed(ended: asyncio.Task[None]) -> None:
            if not listening.done():
                listening.set_exception(ended.exception() or RuntimeError("ended before it listened"))

        task.add_done_callback(failed)
        port = await listening
        channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=[("grpc.use_local_subchannel_pool", 1)])
        return cls(port, channel, stopping, task)

    async def stop(self) -> None:
        self._stopping.set()
        await self._task
        await self.channel.close()

    async def ready(self) -> None:
        """Wait until it answers."""

        async def answers() -> bool:
            try:
                await self.stub.ListNodes(tracker_pb2.ListNodesRequest(), timeout=5)
            except grpc.aio.AioRpcError:
                return False
            return True

        await eventually(answers)

    async def locate(
        self, digest: Digest, place: Topology | None = None, *, node_id: str = "", most: int = 0
    ) -> tuple[tuple[Holder, ...], bool]:
        """Ask for the holders of one digest, and whether the answer is stale."""
        request = tracker_pb2.LocateRequest(
            digests=[str(digest)],
            node_id=node_id,
            topology=wire.topology_to_wire(place or Topology()),
            max_holders=most,
        )
        response = await self.stub.Locate(request, timeout=5)
        return wire.located_from_wire(response)[digest], response.stale

    async def holder_ids(self, digest: Digest, place: Topology | None = None) -> list[str]:
        holders, _ = await self.locate(digest, place)
        return [holder.node.id for holder in holders]

    async def nodes(self) -> dict[str, Node]:
        response = await self.stub.ListNodes(tracker_pb2.ListNodesRequest(), timeout=5)
        return {message.id: wire.node_from_wire(message) for message in response.nodes}

    async def state(self, node_id: str) -> NodeState | None:
        node = (await self.nodes()).get(node_id)
        return node.state if node else None


@asynccontextmanager
async def tracker(redis_url: str, **changes: float) -> AsyncIterator[RunningTracker]:
    """Run one replica; it is ready when Redis is there."""
    running = await RunningTracker.start(redis_url, **changes)
    try:
        yield running
    finally:
        await running.stop()


class Reachable(Protocol):
    """A tracker, as far as a node needs one."""

    @property
    def stub(self) -> tracker_pb2_grpc.TrackerServiceAsyncStub: ...


class Session:
    """A session stream, driven by hand."""

    def __init__(self, at: Reachable, node_id: str, incarnation: int = 1, place: Topology | None = None) -> None:
        self.node_id = node_id
        self.incarnation = incarnation
        self.place = place or Topology()
        self.call = at.stub.Session(timeout=120)
        self.sequence = 0
        self.epoch = 0
        self.drain_orders: list[bool] = []

    async def send(self, **message: object) -> None:
        await self.call.write(tracker_pb2.SessionRequest(**message))  # type: ignore[arg-type]

    async def receive(self) -> tracker_pb2.SessionResponse:
        """Take the next response; orders to drain or to go on are only written down."""
        while (response := await self._next()).command.HasField("drain"):
            self.drain_orders.append(response.command.drain.draining)
        return response

    async def _next(self) -> tracker_pb2.SessionResponse:
        try:
            async with asyncio.timeout(WITHIN_SECONDS):
                response = await self.call.read()
        except grpc.aio.AioRpcError as error:
            raise SessionEnded(error.code(), error.details() or "") from error
        if isinstance(response, tracker_pb2.SessionResponse):
            return response
        raise SessionEnded(grpc.StatusCode.OK, "")

    async def register(self, inventory: Inventory | None = None, port: int = 7000) -> bool:
        """Register; True if everything has to be announced."""
        message = tracker_pb2.Register(
            node_id=self.node_id,
            incarnation=self.incarnation,
            address=types_pb2.Address(host="127.0.0.1", port=port),
            topology=wire.topology_to_wire(self.place),
            labels={"disk": "ssd"},
            version="0.1.0",
            inventory=wire.inventory_to_wire(inventory or Inventory()),
        )
        await self.send(register=message)
        registered = (await self.receive()).registered
        self.epoch = registered.epoch
        return registered.announce_all

    async def announce(
        self,
        *digests: Digest,
        reset: bool = False,
        withdraws: Iterable[Digest] = (),
        images: Iterable[HeldImage] = (),
        size_bytes: int = 10,
    ) -> None:
        announce = tracker_pb2.Announce(
            reset=reset,
            holds=[wire.held_blob_to_wire(HeldBlob(digest, size_bytes)) for digest in digests],
            withdraws=[str(digest) for digest in withdraws],
            images=[wire.held_image_to_wire(image) for image in images],
        )
        await self.send(announce=announce)
        assert (await self.receive()).HasField("announce_ack")

    async def beat(self, inventory: Inventory | None = None) -> None:
        """Send a heartbeat and take its acknowledgement."""
        self.sequence += 1
        beat = tracker_pb2.Heartbeat(
            sequence=self.sequence,
            health=types_pb2.HealthSample(active_streams=3, store_available=True),
            inventory=wire.inventory_to_wire(inventory) if inventory else None,
        )
        await self.send(heartbeat=beat)
        assert (await self.receive()).heartbeat_ack.sequence == self.sequence

    async def drain(self, draining: bool = True) -> None:
        await self.send(drain=tracker_pb2.Drain(draining=draining))

    async def end(self) -> None:
        """Half-close and wait for the end."""
        await self.call.done_writing()
        with contextlib.suppress(SessionEnded):
            while True:
                await self.receive()
        await self.call.code()

    def cut(self) -> None:
        """Let the stream break."""
        self.call.cancel()


class SessionEnded(Exception):
    """The tracker has ended the session."""

    def __init__(self, code: grpc.StatusCode, details: str) -> None:
        super().__init__(code, details)
        self.code = code
        self.details = details


class LivingNode:
    """A node that keeps a session with whichever tracker there is, and announces when it is told to."""

    def __init__(
        self,
        trackers: Sequence[Reachable],
        node_id: str,
        digests: Sequence[Digest],
        place: Topology | None = None,
        *,
        interval_seconds: float = INTERVAL_SECONDS,
        port: int = 7000,
    ) -> None:
        self._trackers = trackers
        self._node_id = node_id
        self._digests = digests
        self._place = place
        self._interval_seconds = interval_seconds
        self._port = port
        self.sessions = 0

    async def live(self) -> None:
        """Go on until cancelled."""
        while True:
            tracker = self._trackers[self.sessions % len(self._trackers)]
            self.sessions += 1
            session = Session(tracker, self._node_id, incarnation=7, place=self._place)
            try:
                await self._keep(session)
            except (SessionEnded, grpc.aio.AioRpcError, asyncio.InvalidStateError, TimeoutError):
                await asyncio.sleep(0.1)
            finally:
                session.cut()

    async def _keep(self, session: Session) -> None:
        async with asyncio.timeout(SILENCE_SECONDS):
            announce_all = await session.register(Inventory.of(self._digests), self._port)
        if announce_all:
            await session.announce(*self._digests, reset=True)
        while True:
            async with asyncio.timeout(SILENCE_SECONDS):
                await session.beat()
            await asyncio.sleep(self._interval_seconds)


@asynccontextmanager
async def living(nodes: Iterable[LivingNode]) -> AsyncIterator[None]:
    """Let nodes live for a while."""
    tasks = [asyncio.create_task(node.live()) for node in nodes]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
