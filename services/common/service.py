"""The life of a service process: settings, logs, signals, exit codes."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import Awaitable, Callable
from importlib import metadata

from stafett.common.errors import StartupFailed
from stafett.common.logs import configure_logs
from stafett.common.memory import keep_freed_buffers
from stafett.common.settings import S, SettingsInvalid, load
from stafett.common.tracing import traces

EXIT_FAILED = 1
EXIT_USAGE = 2


def version() -> str:
    """Version of the installed distribution."""
    return metadata.version("stafett")


def run_service(
    name: str,
    settings_type: type[S],
    arguments: list[str],
    serve: Callable[[S, asyncio.Event], Awaitable[None]],
) -> int:
    """Run a service until SIGTERM or SIGINT sets the event that `serve` gets; return the exit code.

    Wrong settings print all of them and give 2; a service that cannot start prints one line and gives 1.
    """
    try:
        settings = load(settings_type, arguments, f"stafett {name}")
    except SettingsInvalid as error:
        print(error, file=sys.stderr)  # noqa: T201
        return EXIT_USAGE
    configure_logs(name, settings.log_level)
    keep_freed_buffers()
    failures: list[str] = []
    try:
        with traces(name, str(getattr(settings, "node_id", "") or f"{socket.gethostname()}-{os.getpid()}")):
            asyncio.run(_until_signalled(settings, serve))
    except* StartupFailed as group:
        failures = _messages(group)
    for line in failures:
        print(f"stafett {name}: {line}", file=sys.stderr)  # noqa: T201
    return EXIT_FAILED if failures else 0


async def _until_signalled(settings: S, serve: Callable[[S, asyncio.Event], Awaitable[None]]) -> None:
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()

    def stop(*_: object) -> None:
        if not loop.is_closed():
            loop.call_soon_threadsafe(stopping.set)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)  # not the loop's: those end with it, and a second signal would then kill the exit
    await serve(settings, stopping)


def _messages(group: BaseExceptionGroup[StartupFailed]) -> list[str]:
    lines: list[str] = []
    for error in group.exceptions:
        lines += _messages(error) if isinstance(error, BaseExceptionGroup) else [str(error)]
    return lines
