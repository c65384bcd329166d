"""`stafett configure`: shows or makes the changes, and says what is left for the operator to do."""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Iterable, Sequence

from stafett.cli.configure.changing import carry_out
from stafett.cli.configure.distros import Distro
from stafett.cli.configure.hosts_toml import origin_of
from stafett.cli.configure.mirror_files import Change, changes_for, removals
from stafett.cli.configure.wanted import Wanted
from stafett.cli.doctor.containerd_checks import check_config
from stafett.cli.doctor.verdict import Level
from stafett.common.errors import StartupFailed

EXIT_DIFFERS = 1
EXIT_FAILED = 2


def run_configure(wanted: Wanted, *, remove: bool, dry_run: bool, check: bool) -> int:
    """Write, check or remove the files; return the exit code: 1 if `check` finds a difference, 2 for a failure."""
    root = wanted.distro.hosts_dir
    try:
        changes = removals(root) if remove else changes_for(root, wanted.registries, wanted.gateway)
    except (StartupFailed, OSError) as error:
        print(f"{error}; run it as root" if isinstance(error, PermissionError) else error, file=sys.stderr)
        return EXIT_FAILED
    code = EXIT_DIFFERS if check and changes else 0
    if dry_run or check:
        _show(changes)
    else:
        code = _make(wanted.distro, changes)
    if not changes:
        print(f"nothing to do: {root} is as it should be")
    if not remove:
        _print_left_to_do(wanted.distro)
    return code


def _make(distro: Distro, changes: Sequence[Change]) -> int:
    try:
        carry_out(distro.hosts_dir, changes)
    except StartupFailed as error:
        print(f"{error}. What has to be changed there, by whoever can:", file=sys.stderr)
        _show(changes)
        return EXIT_FAILED
    for change in changes:
        print(f"{_verb(change)} {change.path}")
    return 0


def _show(changes: Sequence[Change]) -> None:
    sys.stdout.writelines(line for change in changes for line in _diff(change))


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
    return "updated" if origin_of(change.before or "") else "wrote"


def _print_left_to_do(distro: Distro) -> None:
    """Say what containerd's own configuration lacks, each remedy once."""
    wrong = [verdict for verdict in check_config(distro) if verdict.level is not Level.OK]
    said = [verdict.said for verdict in wrong] + list(dict.fromkeys(verdict.remedy for verdict in wrong))
    print("\n".join(said), end="\n" if said else "", file=sys.stderr)
