"""The screen of `stafett pull`: bars on a terminal, lines elsewhere, one JSON document on request."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TransferSpeedColumn

from stafett.cli.pull import Pulled, pull
from stafett.common.digest import Digest
from stafett.common.errors import StafettError
from stafett.common.oci import Descriptor

EXIT_FAILED = 1


def run_pull(image: str, hosts: Sequence[str], layout: Path, *, platform: str | None, as_json: bool) -> int:
    """Pull and show it; return the exit code."""
    console = Console(stderr=True)
    bars = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        console=console,
        disable=as_json or not console.is_terminal,
    )
    tasks: dict[Digest, TaskID] = {}

    def announce(blobs: Sequence[Descriptor]) -> None:
        for blob in blobs:
            tasks[blob.digest] = bars.add_task(blob.digest.hex[:12], total=blob.size_bytes)

    def progress(blob: Descriptor, size_bytes: int) -> None:
        bars.advance(tasks[blob.digest], size_bytes)

    try:
        with bars:
            result = asyncio.run(pull(image, hosts, layout, platform=platform, announce=announce, progress=progress))
    except* (StafettError, OSError) as errors:
        print(f"pull of {image} failed: {_first(errors)}", file=sys.stderr)
        return_code = EXIT_FAILED
    else:
        return_code = 0
        print(_document(result) if as_json else _line(result))
    return return_code


def _document(result: Pulled) -> str:
    return json.dumps(
        {
            "image": result.image,
            "digest": str(result.digest),
            "seconds": round(result.seconds, 3),
            "bytes_by_source": result.bytes_by_source,
            "longest_gap_seconds": round(result.longest_gap_seconds, 3),
            "trace_id": result.trace_id,
        }
    )


def _line(result: Pulled) -> str:
    sources = ", ".join(f"{decimal(size)} from {source}" for source, size in sorted(result.bytes_by_source.items()))
    found = f"{result.image} ({str(result.digest)[:19]}) in {result.seconds:.1f} s: {sources or 'nothing to fetch'}"
    return f"{found}, trace {result.trace_id}" if result.trace_id else found


def _first(group: BaseExceptionGroup[StafettError | OSError]) -> BaseException:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
