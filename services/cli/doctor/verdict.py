"""What the doctor says: one verdict for each thing that it has looked at."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum


class Level(IntEnum):
    """How bad it is; the worst is the exit code."""

    OK = 0
    WARN = 1
    FAIL = 2


@dataclass(frozen=True)
class Verdict:
    """`check` is a stable name; `remedy` says what to do, empty where all is well."""

    level: Level
    check: str
    said: str
    remedy: str = ""


def ok(check: str, said: str) -> Verdict:
    """All is well."""
    return Verdict(Level.OK, check, said)


def warn(check: str, said: str, remedy: str) -> Verdict:
    """It works, but less well than it could."""
    return Verdict(Level.WARN, check, said, remedy)


def fail(check: str, said: str, remedy: str) -> Verdict:
    """It does not work."""
    return Verdict(Level.FAIL, check, said, remedy)
