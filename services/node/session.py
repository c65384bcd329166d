"""The node's session with a tracker, in a thread and an event loop of its own: a busy node must not look sick.

What to announce is `outbox`'s decision; this module only carries it. A tracker that does not acknowledge for 1.2 s is
left for another replica, which round robin picks.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading
from collections.abc import Callable, Mapping

import grpc
import structlog

from stafett.api.v1 import tracker_pb2, tracker_pb2_grpc
from stafett.common import wire
from stafett.common.backoff import backoff_seconds
from stafett.common.cluster import HealthSample, HeldImage, Registration
from stafett.common.digest import Digest
from stafett.common.errors import Unavailable
from stafett.common.grpc_transport import TlsFiles, tracker_channel
from stafett.node.outbox import Outbox

log = structlog.get_logger()

SILENCE_SECONDS = 1.2
SESSION_SECONDS = 24 * 3600.0
BYE_SECONDS = 1.0

Call = grpc.aio.StreamStreamCall[tracker_pb2.SessionRequest, tracker_pb2.SessionResponse]


OnDrain = Callable[[bool], object]
"""Hears, in the session's thread, that an operator wants the node drained (True) or back (False)."""


class SessionThread:
    """Runs the session. `publish`, `drain` and `stop` may be called from the main loop's thread."""

    def __init__(self, session: Session) -> None:
        self._loop = asyncio.new_event_loop()
        self._session = session
        self._thread = threading.Thread(target=self._run, name="tracker-session", daemon=True)

    @property
    def registered(self) -> bool:
        """Whether a tracker has this node's session now; may be read from any thread."""
        return self._session.registered

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def publish(self, blobs: Mapping[Digest, int], images: Mapping[str, HeldImage]) -> None:
        """Say what the node holds now; the mappings must not change afterwards."""
        self._loop.call_soon_threadsafe(self._session.publish, blobs, images)

    def drain(self) -> None:
        """Announce that the node takes no new streams."""
        self._loop.call_soon_threadsafe(self._session.drain)

    def stop(self) -> None:
        """End the session and the thread."""
        self._loop.call_soon_threadsafe(self._session.stop)
        self._thread.join(BYE_SECONDS * 3)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._session.run())
        self._loop.close()


class Session:
    """One session after the other, until stopped."""

    def __init__(
        self,
        target: str,
        tls: TlsFiles | None,
        identity: Registration,
        health: Callable[[], HealthSample],
        on_drain: OnDrain = lambda draining: None,
    ) -> None:
        self._target = target
        self._tls = tls
        self._identity = identity
        self._health = health
        self._on_drain = on_drain
        self._outbox = Outbox()
        self._news = asyncio.Event()
        self._acked = asyncio.Event()
        self._stopping = asyncio.Event()
        self._writing = asyncio.Lock()
        self._draining = False
        self._drain_told = False
        self.registered = False

    def publish(self, blobs: Mapping[Digest, int], images: Mapping[str, HeldImage]) -> None:
        """See `SessionThread.publish`."""
        self._outbox.want(blobs, images)
        self._news.set()

    def drain(self) -> None:
        """See `SessionThread.drain`."""
        self._draining = True
        self._news.set()

    def stop(self) -> None:
        """See `SessionThread.stop`."""
        self._stopping.set()

    async def run(self) -> None:
        """Keep a session until stopped."""
        async with asyncio.TaskGroup() as group:
            keeper = group.create_task(self._keep())
            await self._stopping.wait()
            await asyncio.wait([keeper], timeout=BYE_SECONDS)
            keeper.cancel()

    async def _keep(self) -> None:
        channel = tracker_channel(self._target, self._tls)
        stub = tracker_pb2_grpc.TrackerServiceStub(channel)
        rng = random.Random()
        attempt = 0
        try:
            while not self._stopping.is_set():  # a cancellation may get lost among the errors of a session's tasks
                # In a task of its own: a TaskGroup whose tasks fail may leave its own task counted as cancelled (3.11.7
                # does too), and in Python 3.11.2 no timeout works any more in a task that is.
                reason, registered = await asyncio.create_task(self._one_session(stub))
                self._outbox.session_lost()
                attempt = 0 if registered else attempt + 1
                log.info("session_ended", reason=reason, attempt=attempt)
                if attempt == 1:
                    log.warning(
                        "tracker_away", target=self._target, reason=reason, remedy="trying again; see --tracker"
                    )
                await self._pause(backoff_seconds(attempt, cap=2.0, rng=rng))
        finally:
            await channel.close()

    async def _pause(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stopping.wait()

    async def _one_session(self, stub: tracker_pb2_grpc.TrackerServiceAsyncStub) -> tuple[str, bool]:
        """Register and stay until it ends; tell why it did, and whether it had registered."""
        call = stub.Session(timeout=SESSION_SECONDS)
        try:
            return await self._converse(call), self.registered
        except Exception as error:
            log.error("session_crashed", exc_info=error)
            return "an error of our own", False
        finally:
            self.registered = False
            call.cancel()

    async def _converse(self, call: Call) -> str:
        reason = "the tracker ended it"
        try:
            granted = await self._register(call)
            self.registered = True
            async with asyncio.TaskGroup() as group:
                group.create_task(self._read(call))
                group.create_task(self._announce(call))
                group.create_task(self._beat(call, granted.heartbeat_interval_ms / 1000))
                group.create_task(self._leave(call))
        except* asyncio.InvalidStateError:
            reason = "the tracker ended it during a write"
        except* grpc.aio.AioRpcError as errors:
            reason = _first(errors)
        except* (TimeoutError, Unavailable):
            reason = f"no word from the tracker for {SILENCE_SECONDS} s"
        return reason

    async def _register(self, call: Call) -> tracker_pb2.Registered:
        register = tracker_pb2.Register(
            node_id=self._identity.node_id,
            incarnation=self._identity.incarnation,
            address=wire.address_to_wire(self._identity.address),
            topology=wire.topology_to_wire(self._identity.topology),
            labels=dict(self._identity.labels),
            version=self._identity.version,
            inventory=wire.inventory_to_wire(self._outbox.told),
        )
        async with asyncio.timeout(SILENCE_SECONDS):
            await call.write(tracker_pb2.SessionRequest(register=register))
            answer = await _response(call)
        if not answer.HasField("registered"):
            raise Unavailable("tracker", "it did not answer a registration")
        log.info("registered", epoch=answer.registered.epoch, announce_all=answer.registered.announce_all)
        if answer.registered.announce_all:
            self._outbox.start_over()
        self._drain_told = False
        self._news.set()
        return answer.registered

    async def _read(self, call: Call) -> None:
        while True:
            response = await _response(call)
            if response.HasField("announce_ack"):
                self._outbox.confirmed()
                self._news.set()
            elif response.HasField("heartbeat_ack"):
                self._acked.set()
            elif response.HasField("command") and response.command.HasField("announce_all"):
                log.info("announcing_all", reason=response.command.announce_all.reason)
                self._outbox.start_over()
                self._news.set()
            elif response.HasField("command") and response.command.HasField("drain"):
                log.info("drain_ordered", draining=response.command.drain.draining)
                self._on_drain(response.command.drain.draining)

    async def _announce(self, call: Call) -> None:
        while True:
            await self._news.wait()
            self._news.clear()
            if self._draining and not self._drain_told:
                self._drain_told = True
                await self._write(call, tracker_pb2.SessionRequest(drain=tracker_pb2.Drain(draining=True)))
            announcement = self._outbox.next()
            if announcement is None:
                continue
            message = tracker_pb2.Announce(
                reset=announcement.reset,
                holds=[wire.held_blob_to_wire(blob) for blob in announcement.holds],
                withdraws=[str(digest) for digest in announcement.withdraws],
                images=[wire.held_image_to_wire(image) for image in announcement.images],
                withdrawn_images=announcement.withdrawn_images,
            )
            await self._write(call, tracker_pb2.SessionRequest(announce=message))

    async def _beat(self, call: Call, interval_seconds: float) -> None:
        loop = asyncio.get_running_loop()
        sequence = 0
        while True:
            sent_at = loop.time()
            sequence += 1
            self._acked.clear()
            inventory = self._outbox.settled_inventory
            heartbeat = tracker_pb2.Heartbeat(
                sequence=sequence,
                health=wire.health_to_wire(self._health()),
                inventory=wire.inventory_to_wire(inventory) if inventory else None,
            )
            async with asyncio.timeout(SILENCE_SECONDS):
                await self._write(call, tracker_pb2.SessionRequest(heartbeat=heartbeat))
                await self._acked.wait()
            await asyncio.sleep(max(0.0, sent_at + interval_seconds - loop.time()))

    async def _leave(self, call: Call) -> None:
        """When stopped, end the stream properly, so that a drained node's lease goes at once."""
        await self._stopping.wait()
        async with self._writing:  # and nobody writes any more
            await call.done_writing()
            await asyncio.sleep(SESSION_SECONDS)

    async def _write(self, call: Call, message: tracker_pb2.SessionRequest) -> None:
        async with self._writing:
            await call.write(message)


async def _response(call: Call) -> tracker_pb2.SessionResponse:
    """Read the next message.

    Raises:
        Unavailable: if the tracker has ended the session.
    """
    response: object = await call.read()
    if not isinstance(response, tracker_pb2.SessionResponse):
        raise Unavailable("tracker", "it ended the session")
    return response


def _first(group: BaseExceptionGroup[grpc.aio.AioRpcError]) -> str:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return f"{error.code().name}: {error.details()}" if isinstance(error, grpc.aio.AioRpcError) else str(error)
