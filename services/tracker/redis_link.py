"""The connection to Redis or Valkey: where it is, how long to wait, and the scripts that run there.

Knows nothing of what the keys mean. Every failure of Redis leaves here as `Unavailable`, within a second.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Protocol, cast
from urllib.parse import SplitResult, unquote, urlsplit

import structlog
from opentelemetry.trace import SpanKind
from opentelemetry.util.types import AttributeValue
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel, SentinelConnectionPool
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError

from stafett.common.errors import Unavailable
from stafett.common.grpc_transport import TlsFiles
from stafett.common.tracing import TRACER, recording

log = structlog.get_logger()

CALL_SECONDS = 1.0
"""Longest time for one exchange with Redis, waiting for a free connection included."""
_CONNECTIONS = 32

Script = str
Reply = Sequence[str | int]


class _RunsScripts(Protocol):
    """A client or pipeline, as far as scripts need one."""

    async def __call__(self, keys: Sequence[str], args: Sequence[str | int], client: Redis | None = None) -> object: ...


@dataclass(frozen=True, slots=True)
class RedisPlace:
    """A parsed Redis URL; `master` is empty unless Sentinels are asked for it."""

    hosts: tuple[tuple[str, int], ...]
    database: int = 0
    master: str = ""
    tls: bool = False
    username: str | None = None
    password: str | None = None
    authority: Path | None = None
    """PEM file that a rediss:// server's certificate is checked by; None: the system's authorities."""
    identity: TlsFiles | None = None
    """Certificate to show to a server that is checked by `authority`, if it asks for one."""

    @classmethod
    def parse(cls, url: str) -> RedisPlace:
        """Parse redis://, rediss:// and redis+sentinel:// URLs.

        Raises:
            ValueError: telling what is wrong, never quoting the password.
        """
        parts = urlsplit(url)
        if parts.scheme not in ("redis", "rediss", "redis+sentinel"):
            raise ValueError("must start with redis://, rediss:// or redis+sentinel://")
        sentinel = parts.scheme == "redis+sentinel"
        credentials, _, hosts = parts.netloc.rpartition("@")
        username, _, password = credentials.partition(":")
        path = parts.path.strip("/").split("/")
        master = path.pop(0) if sentinel else ""
        if sentinel and not master:
            raise ValueError("needs the master's name after the hosts: redis+sentinel://host:port/master-name/0")
        if len(path) > 1 or parts.query or parts.fragment:
            raise ValueError("has more after the database number than is understood")
        return cls(
            hosts=tuple(_host_and_port(host, 26379 if sentinel else 6379) for host in hosts.split(",")),
            database=_database(path),
            master=master,
            tls=parts.scheme == "rediss",
            username=unquote(username) or None,
            password=unquote(password) or None,
        )

    def __str__(self) -> str:
        hosts = ",".join(f"{host}:{port}" for host, port in self.hosts)
        return f"{hosts}/{self.master}/{self.database}" if self.master else f"{hosts}/{self.database}"

    def connect(self) -> Redis:
        """Make a client; it connects when it is first used.

        A connection that a restarted server has closed is tried once more, anything else fails at once.
        """
        options: dict[str, object] = {
            "db": self.database,
            "username": self.username,
            "password": self.password,
            "socket_timeout": CALL_SECONDS,
            "socket_connect_timeout": CALL_SECONDS,
            "decode_responses": True,
            "protocol": 2,
            "max_connections": _CONNECTIONS * 2,
            "retry": Retry(NoBackoff(), 1, supported_errors=(RedisConnectionError,)),
        }
        if self.master:
            quick = {"socket_timeout": 0.3, "socket_connect_timeout": 0.3, "retry": Retry(NoBackoff(), 0)}
            sentinel = Sentinel(list(self.hosts), sentinel_kwargs=quick)  # type: ignore[no-untyped-call]
            return cast(Redis, sentinel.master_for(self.master, **options))  # type: ignore[arg-type]
        host, port = self.hosts[0]
        return Redis(host=host, port=port, ssl=self.tls, **options, **self._certificates())  # type: ignore[arg-type]

    def _certificates(self) -> dict[str, str]:
        """Files, read again for each new connection."""
        if not self.tls or self.authority is None:
            return {}
        files = {"ssl_ca_certs": str(self.authority)}
        if self.identity is not None:
            files |= {"ssl_certfile": str(self.identity.certificate), "ssl_keyfile": str(self.identity.key)}
        return files


class RedisLink:
    """Runs scripts on Redis. `available` tells how the last exchange ended."""

    def __init__(self, place: RedisPlace) -> None:
        self._place = place
        self._client = place.connect()
        self._scripts: Mapping[Script, _RunsScripts] = {
            name: self._client.register_script(text) for name, text in _scripts().items()
        }
        self._slots = asyncio.Semaphore(_CONNECTIONS)
        self.available = False
        self._reported = False
        self._closed = False

    async def run(self, script: Script, keys: Sequence[str], args: Sequence[str | int]) -> Reply:
        """Run one script.

        Raises:
            Unavailable: if Redis does not answer in time, or with an error.
        """
        with self._span("EVALSHA", script):
            return cast(Reply, await self._exchange(lambda: self._scripts[script](keys, args), CALL_SECONDS))

    async def run_all(
        self,
        calls: Sequence[tuple[Script, Sequence[str], Sequence[str | int]]],
        timeout_seconds: float = CALL_SECONDS,
    ) -> list[Reply]:
        """Run many scripts in one exchange, each atomic by itself. Raises `Unavailable` as `run` does."""

        async def execute() -> object:
            async with self._client.pipeline(transaction=False) as pipeline:
                for script, keys, args in calls:
                    await self._scripts[script](keys, args, cast(Redis, pipeline))
                return await pipeline.execute()

        if not calls:
            return []
        with self._span("EVALSHA", calls[0][0], len(calls)):
            return cast(list[Reply], await self._exchange(execute, timeout_seconds))

    async def commands(self, commands: Sequence[Sequence[str | int]]) -> list[object]:
        """Run plain commands in one exchange. Raises `Unavailable` as `run` does."""

        async def execute() -> object:
            async with self._client.pipeline(transaction=False) as pipeline:
                for words in commands:
                    pipeline.execute_command(*words)
                return await pipeline.execute()

        if not commands:
            return []
        with self._span(str(commands[0][0]), batch=len(commands)):
            return cast(list[object], await self._exchange(execute, CALL_SECONDS))

    async def close(self) -> None:
        """Let running exchanges end, then close all connections, those to the Sentinels too.

        An exchange that loses its connection opens a new one, which would outlive us.
        """
        self._closed = True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CALL_SECONDS):
                for _ in range(_CONNECTIONS):
                    await self._slots.acquire()
        await self._client.aclose()
        pool = self._client.connection_pool
        if isinstance(pool, SentinelConnectionPool):
            for sentinel in pool.sentinel_manager.sentinels:
                await sentinel.aclose()

    def _span(self, command: str, script: Script = "", batch: int = 1) -> AbstractContextManager[object]:
        """Make a span of one exchange, where a call is being traced; a batch is named after its first command."""
        if not recording():
            return contextlib.nullcontext()
        name = f"PIPELINE {command}" if batch > 1 else command
        attributes: dict[str, AttributeValue] = {
            "db.system.name": "redis",
            "db.namespace": str(self._place.database),
            "db.operation.name": name,
            "server.address": self._place.hosts[0][0],
            "server.port": self._place.hosts[0][1],
        }
        if script:
            attributes["db.stored_procedure.name"] = script
        if batch > 1:
            attributes["db.operation.batch.size"] = batch
        return TRACER.start_as_current_span(
            f"{name} {script}".rstrip(), kind=SpanKind.CLIENT, attributes=attributes, record_exception=False
        )

    async def _exchange(self, operation: Callable[[], Awaitable[object]], timeout_seconds: float) -> object:
        if self._closed:
            raise Unavailable("Redis", "this tracker is stopping")
        task = asyncio.current_task()
        cancels = task.cancelling() if task else 0
        try:
            async with asyncio.timeout(timeout_seconds), self._slots:
                reply = await operation()
        except (RedisError, OSError, TimeoutError) as error:
            self._report_away(error)
            raise Unavailable("Redis", type(error).__name__) from error
        self._report_back()
        if task and task.cancelling() > cancels:
            # redis-py writes under asyncio.wait_for, which before Python 3.12 may swallow a cancellation.
            raise asyncio.CancelledError
        return reply

    def _report_away(self, error: Exception) -> None:
        if self.available or not self._reported:
            log.warning(
                "redis_unavailable",
                redis=str(self._place),
                reason=str(error) or type(error).__name__,
                remedy="start Redis there, or correct STAFETT_TRACKER_REDIS_URL; trying again until it answers",
            )
        self._reported = True
        self.available = False

    def _report_back(self) -> None:
        if not self.available:
            log.info("redis_available", redis=str(self._place))
        self.available = True


def _scripts() -> dict[Script, str]:
    """Read all scripts; a first line "-- include x" puts the file x before it."""
    folder = resources.files("stafett.tracker") / "lua"
    texts = {
        file.name.removesuffix(".lua"): file.read_text() for file in folder.iterdir() if file.name.endswith(".lua")
    }
    return {name: texts.get(_included(text), "") + text for name, text in texts.items() if not name.startswith("_")}


def _included(script: str) -> str:
    return script.partition("\n")[0].partition("-- include ")[2]


def _host_and_port(text: str, default_port: int) -> tuple[str, int]:
    parts: SplitResult = urlsplit(f"//{text}")
    try:
        port = parts.port
    except ValueError:
        raise ValueError("has a port that is not a number from 1 to 65535") from None
    if not parts.hostname or port == 0:
        raise ValueError("needs host:port, and a port from 1 to 65535")
    return parts.hostname, port or default_port


def _database(path: Sequence[str]) -> int:
    text = path[0] if path else ""
    if text and not (text.isascii() and text.isdigit()):
        raise ValueError("has a database that is not a number")
    return int(text or 0)
