"""The tracker replicas, and which of them decides about a digest: rendezvous hashing over those that are live.

That is for speed, as one place sees who asks at the same moment. Trees stay right whoever decides (see `tree_store`),
so a replica that cannot reach the owner decides itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import time
from collections.abc import Iterable
from typing import NoReturn

import grpc
import structlog

from stafett.api.v1 import tracker_pb2, tracker_pb2_grpc
from stafett.common.cluster import Address
from stafett.common.digest import Digest
from stafett.common.errors import Unavailable
from stafett.common.grpc_tracing import traced_call
from stafett.common.grpc_transport import TlsFiles, peer_channel
from stafett.tracker.redis_link import RedisLink

log = structlog.get_logger()

SIGN_SECONDS = 1.0
LIVE_MS = 3_000
FORWARD_SECONDS = 1.5
REST_SECONDS = 2.0
"""A replica that did not answer is left alone for so long."""
_KEYS = ("stafett:{trackers}",)


class Fellows:
    """Call `listen_at` before `run`."""

    def __init__(self, link: RedisLink, tls: TlsFiles | None) -> None:
        self._link = link
        self._own = ""
        self._tls = tls
        self._live: tuple[str, ...] = ()
        self._channels: dict[str, grpc.aio.Channel] = {}
        self._resting: dict[str, float] = {}

    def listen_at(self, own: Address) -> None:
        """Tell where others reach this replica."""
        self._own = own.target()

    async def run(self) -> NoReturn:
        """Give signs of life, and hear those of the others, until cancelled."""
        try:
            while True:
                with contextlib.suppress(Unavailable):
                    before = self._live
                    self._live = tuple(map(str, await self._link.run("meet_fellows", _KEYS, [self._own, LIVE_MS])))
                    for gone in self._channels.keys() - {*self._live, *before}:
                        await self._channels.pop(gone).close()
                await asyncio.sleep(SIGN_SECONDS)
        finally:
            for channel in self._channels.values():
                await channel.close()
            with contextlib.suppress(Unavailable):
                await self._link.run("meet_fellows", _KEYS, [self._own, 0])

    @property
    def live(self) -> int:
        """Number of live replicas, this one included."""
        return len({self._own, *self._live})

    def other_owner(self, digest: Digest) -> str | None:
        """Tell which other replica decides about a digest; None if this one does."""
        now = time.monotonic()
        reachable = [fellow for fellow in self._live if self._resting.get(fellow, 0.0) <= now]
        owner = owner_of(digest, (self._own, *reachable))
        return None if owner == self._own else owner

    async def ask(self, owner: str, request: tracker_pb2.RelayRequest) -> tracker_pb2.RelayResponse | None:
        """Pass a request on; None if the owner does not answer."""
        if owner not in self._channels:
            self._channels[owner] = peer_channel(Address.of_target(owner), self._tls)
        stub = tracker_pb2_grpc.TrackerServiceStub(self._channels[owner])
        forwarded = tracker_pb2.RelayRequest()
        forwarded.CopyFrom(request)
        forwarded.forwarded = True
        try:
            with traced_call("TrackerService/Relay") as metadata:
                return await stub.Relay(forwarded, timeout=FORWARD_SECONDS, metadata=metadata)
        except grpc.aio.AioRpcError as error:
            self._resting[owner] = time.monotonic() + REST_SECONDS
            log.warning("owner_silent", owner=owner, status=error.code().name, remedy="nothing to do, we decide")
            return None


def owner_of(digest: Digest, fellows: Iterable[str]) -> str:
    """Choose which of the replicas, by address, decides about a digest: rendezvous hashing."""
    return max(fellows, key=lambda fellow: hashlib.blake2b(f"{digest} {fellow}".encode(), digest_size=8).digest())
