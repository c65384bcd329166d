"""A channel whose new connections show the newest certificates, without a call lost at the change.

The channel with new certificates is connected beside the old one, and takes the calls once it is ready, or the old one
is not. Calls that run stay on their connection; the old channel is closed when the last of them has ended.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Self

import grpc
import structlog

from stafett.common.tls_files import Certificates, TlsFiles, kept
from stafett.common.tls_refusal import refusal

log = structlog.get_logger()

LOOK_SECONDS = 1.0
"""Files are looked at so often, at most, when calls begin."""
SAY_SECONDS = 60.0
"""A peer that goes on refusing is logged so often."""
SURE_SECONDS = 1.0
"""A peer that hangs up for so long refuses us; one that is being ended does it for a moment."""

Open = Callable[[Certificates], grpc.aio.Channel]


@dataclass(eq=False)
class _Generation:
    """One real channel, made with one set of certificates."""

    channel: grpc.aio.Channel
    calls: int = 0
    retired: bool = False
    methods: dict[_Method, Callable[..., Any]] = field(default_factory=dict)

    @property
    def ready(self) -> bool:
        return self.channel.get_state(try_to_connect=True) is grpc.ChannelConnectivity.READY


@dataclass(eq=False)
class _Method:
    """What a stub calls: begins each call on the channel that is right by then."""

    begin: Callable[..., Any]
    kind: str
    arguments: tuple[Any, ...]
    options: dict[str, Any]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.begin(self, *args, **kwargs)

    def on(self, generation: _Generation) -> Callable[..., Any]:
        """Find, or make, the method of the real channel."""
        if self not in generation.methods:
            make = getattr(generation.channel, self.kind)
            generation.methods[self] = make(*self.arguments, **self.options)
        return generation.methods[self]


class RotatingChannel(grpc.aio.Channel):
    """Behaves as the channels that `open_channel` makes. Calls begin and end in the thread of one event loop."""

    def __init__(self, target: str, tls: TlsFiles, open_channel: Open) -> None:
        """Raises StartupFailed: if the files are of no use."""
        self._target = target
        self._tls = tls
        self._open = open_channel
        self._newest = kept(tls).current(LOOK_SECONDS)
        self._live = _Generation(open_channel(self._newest))
        self._next: _Generation | None = None
        self._old: set[_Generation] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._said: dict[str, float] = {}
        self._hung_up_since: float | None = None

    @property
    def open_channels(self) -> int:
        """How many real channels there are: more than one only around a change."""
        return 1 + (self._next is not None) + len(self._old)

    def _choose(self) -> _Generation:
        certificates = kept(self._tls).current(LOOK_SECONDS)
        if certificates is not self._newest:
            self._newest = certificates
            if self._next:
                self._retire(self._next)
            self._next = _Generation(self._open(certificates))
        if self._next and (self._next.ready or not self._live.ready):
            self._retire(self._live)
            self._live, self._next = self._next, None
        return self._live

    def _begin(self, method: _Method, *args: Any, **kwargs: Any) -> Any:
        generation = self._choose()
        call = method.on(generation)(*args, **kwargs)
        generation.calls += 1
        call.add_done_callback(partial(self._ended, generation))
        return call

    def _ended(self, generation: _Generation, call: grpc.aio.Call) -> None:
        generation.calls -= 1
        if generation.retired and not generation.calls:
            self._spawn(self._shut(generation))
        elif generation.channel.get_state() is grpc.ChannelConnectivity.TRANSIENT_FAILURE:
            self._spawn(self._explain(call))
        else:
            self._hung_up_since = None

    def _retire(self, generation: _Generation) -> None:
        generation.retired = True
        self._old.add(generation)
        if not generation.calls:
            self._spawn(self._shut(generation))

    async def _shut(self, generation: _Generation) -> None:
        await generation.channel.close()
        self._old.discard(generation)

    async def _explain(self, call: grpc.aio.Call) -> None:
        why = refusal(await call.details() or "", self._tls)
        now = time.monotonic()
        if why is None or why.certain:
            self._hung_up_since = None
        elif self._hung_up_since is None:
            self._hung_up_since = now
        sure = self._hung_up_since is None or now - self._hung_up_since >= SURE_SECONDS
        if why is not None and sure and now - self._said.get(why.reason, -SAY_SECONDS) >= SAY_SECONDS:
            self._said[why.reason] = now
            log.error(
                "tls_refused",
                peer=self._target,
                reason=why.reason,
                remedy=why.remedy,
                certificate=str(self._tls.certificate),
                authority=str(self._tls.authority),
            )

    def _spawn(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self, grace: float | None = None) -> None:
        """Close all of it; calls that run are cancelled after `grace` seconds."""
        generations = [self._live, *([self._next] if self._next else []), *self._old]
        await asyncio.gather(*(generation.channel.close(grace) for generation in generations))
        await asyncio.gather(*self._tasks)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        """See `grpc.aio.Channel`."""
        return self._choose().channel.get_state(try_to_connect)

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        """See `grpc.aio.Channel`."""
        await self._choose().channel.wait_for_state_change(last_observed_state)

    async def channel_ready(self) -> None:
        """See `grpc.aio.Channel`."""
        await self._choose().channel.channel_ready()

    def unary_unary(self, *args: Any, **kwargs: Any) -> Any:
        """See `grpc.aio.Channel`."""
        return _Method(self._begin, "unary_unary", args, kwargs)

    def unary_stream(self, *args: Any, **kwargs: Any) -> Any:
        """See `grpc.aio.Channel`."""
        return _Method(self._begin, "unary_stream", args, kwargs)

    def stream_unary(self, *args: Any, **kwargs: Any) -> Any:
        """See `grpc.aio.Channel`."""
        return _Method(self._begin, "stream_unary", args, kwargs)

    def stream_stream(self, *args: Any, **kwargs: Any) -> Any:
        """See `grpc.aio.Channel`."""
        return _Method(self._begin, "stream_stream", args, kwargs)
