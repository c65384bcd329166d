"""Runs one benchmark by name: `python -m bench throughput`."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Callable, Mapping
from types import FrameType
from typing import NoReturn

from bench import failover, index_memory, relay, relay_sim, throughput, watch
from stafett.common.errors import StartupFailed

BENCHMARKS: Mapping[str, Callable[[list[str]], None]] = {
    "failover": failover.main,
    "index-memory": index_memory.main,
    "relay": relay.main,
    "relay-sim": relay_sim.main,
    "throughput": throughput.main,
    "watch": watch.main,
}


def main() -> int:
    """Run the benchmark that the first argument names; the others are its own."""
    parser = argparse.ArgumentParser(prog="python -m bench", description="Benchmarks of Stafett.")
    parser.add_argument("name", choices=sorted(BENCHMARKS))
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="passed on; try --help")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        BENCHMARKS[arguments.name](arguments.arguments)
    except StartupFailed as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("bench: interrupted", file=sys.stderr)
        return 130
    return 0


def _interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
