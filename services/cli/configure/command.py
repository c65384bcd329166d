"""`stafett configure`: shows or makes the changes, and says what is left for the operator to do."""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from stafett.cli.configure.distros import DISTROS, DistroName
from stafett.cli.configure.hosts_toml import DEFAULT, Gateway, Registry, is_ours
from stafett.cli.configure.mirror_files import Change, carry_out, changes_for, removals
from stafett.cli.containerd_config import ContainerdConfig
from stafett.common.errors import StartupFailed

EXIT_DIFFERS = 1
EXIT_FAILED = 2


@dataclass(frozen=True)
class Wanted:
    """What the operator asks for."""

    registries: Sequence[Registry]
    gateway: Gateway
    distro: DistroName
    hosts_dir: Path | None = None
    config: Path | None = None


def run_configure(wanted: Wanted, *, remove: bool, dry_run: bool, check: bool) -> int:
    """Write, check or remove the files; return the exit code: 1 if `check` finds a difference, 2 for a failure."""
    distro = DISTROS[wanted.distro]
    root = wanted.hosts_dir or distro.hosts_dir
    try:
        changes = removals(root) if remove else changes_for(root, wanted.registries, wanted.gateway)
        if dry_run or check:
            sys.stdout.writelines(line for change in changes for line in _diff(change))
        else:
            carry_out(root, changes)
            for change in changes:
                print(f"{_verb(change)} {change.path}")
        config = ContainerdConfig.read(wanted.config or distro.config)
    except StartupFailed as error:
        print(error, file=sys.stderr)
        return EXIT_FAILED
    if not changes:
        print(f"nothing to do: {root} is as it should be")
    if not remove:
        _print_left_to_do(config, root, distro.exact_change(root))
    return EXIT_DIFFERS if check and changes else 0


def registries_of(names: Iterable[str], urls: Iterable[str]) -> list[Registry]:
    """Read `--registry NAME` and `--upstream NAME=URL`. Raises StartupFailed."""
    by_name: dict[str, str] = {}
    for pair in urls:
        name, equals, url = pair.partition("=")
        if not equals or not url.startswith(("http://", "https://")):
            raise StartupFailed(f"--upstream {pair}: must be NAME=http://... or NAME=https://...")
        by_name[name] = url.rstrip("/")
    registries = [Registry(name, by_name.pop(name, "")) for name in dict.fromkeys(names)]
    if by_name:
        raise StartupFailed(f"--upstream {next(iter(by_name))}: no --registry has this name")
    for registry in registries:
        if "/" in registry.name or registry.name.startswith(".") or not registry.name:
            raise StartupFailed(
                f"--registry {registry.name!r}: must be a host name, with a port if need be, or {DEFAULT}"
            )
    return registries


def _diff(change: Change) -> Iterable[str]:
    return difflib.unified_diff(
        (change.before or "").splitlines(keepends=True),
        (change.after or "").splitlines(keepends=True),
        os.devnull if change.before is None else str(change.path),
        os.devnull if change.after is None else str(change.path),
    )


def _verb(change: Change) -> str:
    if change.undo:
        return "put back" if change.after is not None else "removed"
    return "updated" if change.before and is_ours(change.before) else "wrote"


def _print_left_to_do(config: ContainerdConfig | None, root: Path, exact_change: str) -> None:
    if config is None:
        print(f"containerd's configuration was not found; it has to use {root}. {exact_change}", file=sys.stderr)
    elif not config.uses(root) or config.discards_layers:
        reasons = (
            [] if config.uses(root) else [f"does not use {root} (config_path is {config.config_path or 'not set'})"]
        )
        reasons += ["discards layers, so that this host has nothing to share"] if config.discards_layers else []
        print(f"containerd {' and '.join(reasons)}. {exact_change}", file=sys.stderr)
