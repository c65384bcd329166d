"""How a run that started processes is stopped by its user: a signal is noted, and obeyed only where the run waits.

So no signal comes between starting a process and remembering it, and none cuts the cleaning up short.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_noted = threading.Event()


class Interrupted(Exception):
    """The user wants the run to end."""


@contextmanager
def interruptible() -> Iterator[None]:
    """Obey Ctrl-C, SIGTERM and a closed terminal wherever the block waits, and nowhere else.

    SIGINT also where it was inherited as ignored, as in the background of a script; SIGHUP not under nohup.
    """
    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    _noted.clear()
    before = {number: signal.signal(number, lambda number, frame: _noted.set()) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _noted.clear()


def interrupted() -> bool:
    """Whether the user wants the run to end."""
    return _noted.is_set()


def obey_interruption() -> None:
    """Raise `Interrupted` if the user wants the run to end; from any thread."""
    if _noted.is_set():
        raise Interrupted
