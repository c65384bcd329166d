"""A tracker that does what a test tells it, over real gRPC, and remembers what it heard."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
from grpc_health.v1.health_pb2 import HealthCheckResponse

from stafett.api.v1 import tracker_pb2
from stafett.common.cluster import Address
from stafett.common.errors import SessionLost
from stafett.common.grpc_transport import bind, new_server

SERVICE = "stafett.api.v1.TrackerService"
HEARTBEAT_MS = 50
Context = grpc.aio.ServicerContext[tracker_pb2.SessionRequest, tracker_pb2.SessionResponse]


class HeardSession:
    """One session: what the node said in it, and a way to talk back."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._writing = asyncio.Lock()
        self.register = tracker_pb2.Register()
        self.heartbeats: list[tracker_pb2.Heartbeat] = []
        self.announcements: list[tracker_pb2.Announce] = []
        self.drains: list[bool] = []
        self.ended_by_node = False
        self.abort = False

    async def write(self, response: tracker_pb2.SessionResponse) -> None:
        async with self._writing:
            await self._context.write(response)

    async def order_everything(self) -> None:
        """Send the command to announce all."""
        command = tracker_pb2.Command(announce_all=tracker_pb2.AnnounceAll(reason="test"))
        await self.write(tracker_pb2.SessionResponse(command=command))

    async def acknowledge(self) -> None:
        """Acknowledge an announcement."""
        await self.write(tracker_pb2.SessionResponse(announce_ack=tracker_pb2.AnnounceAck()))


class ScriptedTracker:
    """Serves sessions only. `blobs` and `images` are what its index would hold."""

    def __init__(self) -> None:
        self.sessions: list[HeardSession] = []
        self.blobs: set[str] = set()
        self.images: set[str] = set()
        self.announce_all = False
        self.acknowledges_beats = True
        self.acknowledges_news = True
        self.port = 0
        self._server, self._health = new_server()

    async def start(self, port: int) -> None:
        """Listen on loopback; port 0 picks one."""
        handler = grpc.stream_stream_rpc_method_handler(
            self.Session,
            request_deserializer=tracker_pb2.SessionRequest.FromString,
            response_serializer=tracker_pb2.SessionResponse.SerializeToString,
        )
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, {"Session": handler}),))
        self.port = bind(self._server, Address("127.0.0.1", port), None)
        await self._server.start()
        await self._health.set(SERVICE, HealthCheckResponse.SERVING)

    async def stop(self) -> None:
        """Go away at once."""
        await self._server.stop(grace=0)

    @property
    def last(self) -> HeardSession:
        """The newest session."""
        return self.sessions[-1]

    async def Session(  # noqa: N802
        self, request_iterator: AsyncIterator[tracker_pb2.SessionRequest], context: Context
    ) -> None:
        """Listen until the node or the test ends it."""
        heard = HeardSession(context)
        async for request in request_iterator:
            if heard.abort:
                raise SessionLost("n1", len(self.sessions))
            await self._hear(heard, request)
        heard.ended_by_node = True

    async def _hear(self, heard: HeardSession, request: tracker_pb2.SessionRequest) -> None:
        if request.HasField("register"):
            heard.register = request.register
            self.sessions.append(heard)
            await heard.write(tracker_pb2.SessionResponse(registered=self._grant()))
        elif request.HasField("heartbeat"):
            heard.heartbeats.append(request.heartbeat)
            if self.acknowledges_beats:
                ack = tracker_pb2.HeartbeatAck(sequence=request.heartbeat.sequence)
                await heard.write(tracker_pb2.SessionResponse(heartbeat_ack=ack))
        elif request.HasField("announce"):
            heard.announcements.append(request.announce)
            self._apply(request.announce)
            if self.acknowledges_news:
                await heard.acknowledge()
        elif request.HasField("drain"):
            heard.drains.append(request.drain.draining)

    def _grant(self) -> tracker_pb2.Registered:
        return tracker_pb2.Registered(
            epoch=len(self.sessions),
            lease_ttl_ms=4000,
            heartbeat_interval_ms=HEARTBEAT_MS,
            announce_all=self.announce_all,
        )

    def _apply(self, said: tracker_pb2.Announce) -> None:
        if said.reset:
            self.blobs.clear()
            self.images.clear()
        self.blobs |= {blob.digest for blob in said.holds}
        self.images |= {image.name for image in said.images}
        self.blobs -= set(said.withdraws)
        self.images -= set(said.withdrawn_images)


@asynccontextmanager
async def scripted(port: int = 0) -> AsyncIterator[ScriptedTracker]:
    """Run one on loopback."""
    heard = ScriptedTracker()
    await heard.start(port)
    try:
        yield heard
    finally:
        await heard.stop()
