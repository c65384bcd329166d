"""What the services that run on this host were told: options and environment of their processes."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc")


@dataclass(frozen=True)
class Told:
    """Options and environment with which a service was started."""

    pid: int
    arguments: Sequence[str]
    environment: Mapping[str, str]


def told(service: str, proc: Path = _PROC) -> Told | None:
    """Look for `stafett <service>` among the processes that see the same files; None if there is none, or several."""
    found = []
    for process in proc.glob("[0-9]*"):
        try:
            if os.readlink(process / "ns/mnt") != os.readlink(proc / "self/ns/mnt"):
                continue
            arguments = _arguments(_words(process / "cmdline"), service)
            if arguments is not None:
                environment = dict(word.partition("=")[::2] for word in _words(process / "environ"))
                found.append(Told(int(process.name), arguments, environment))
        except OSError:
            continue  # it has ended, or is not ours to look at
    return found[0] if len(found) == 1 else None


def _arguments(words: Sequence[str], service: str) -> Sequence[str] | None:
    """What stands behind `stafett <service>`, which Python may run as a script or a module."""
    names = [Path(word).name for word in words[:4]]
    if names and names[0].startswith("python"):
        names = names[2:] if names[1:2] == ["-m"] else names[1:]
    if names[:2] != ["stafett", service]:
        return None
    return words[words.index(service) + 1 :]


def _words(path: Path) -> list[str]:
    return path.read_bytes().decode("utf-8", "replace").split("\0")[:-1]
