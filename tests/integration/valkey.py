"""A real Valkey or Redis server for tests: on loopback, a free port, without persistence."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

from redis.asyncio import Redis
from redis.exceptions import RedisError

from stafett.cli.local_cluster.parts import find_redis_server
from stafett.cli.local_cluster.processes import free_port

READY_SECONDS = 10.0


class ValkeyServer:
    """One server process; `kill` and `start` keep the port.

    `options` replace the usual ones, a config file first; `environment` is added to ours.
    """

    def __init__(
        self,
        directory: Path,
        *,
        program: str = "",
        options: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._directory = directory
        self._program = program or str(find_redis_server())
        self._options = options
        self._environment = {**os.environ, **(environment or {})}
        self._process: asyncio.subprocess.Process | None = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.kill()

    async def start(self) -> None:
        """Start the server and wait until it answers."""
        plain = ("--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir", str(self._directory))
        words = self._options or plain
        first = (words[0],) if self._options and not words[0].startswith("--") else ()
        self._process = await asyncio.create_subprocess_exec(
            self._program,
            *first,
            "--port",
            str(self.port),
            *words[len(first) :],
            env=self._environment,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )
        async with asyncio.timeout(READY_SECONDS):
            while not await self._answers():  # noqa: ASYNC110
                await asyncio.sleep(0.02)

    async def kill(self) -> None:
        """End the server at once; all it knew is gone."""
        if self._process is not None:
            if self._process.returncode is None:
                self._process.kill()
            await self._process.wait()
            self._process = None

    def freeze(self) -> None:
        """Stop the process; connections stay open and nothing answers."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let a frozen process go on."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    async def flush(self) -> None:
        """Delete everything."""
        async with Redis.from_url(self.url) as client:
            await client.flushall()

    async def _answers(self) -> bool:
        async with Redis.from_url(self.url, retry=None) as client:
            try:
                return bool(await client.ping())
            except (RedisError, OSError):
                return False
