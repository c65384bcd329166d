"""The folder of containerd's mirror files (certs.d): what has to change in it, and changing it so that nothing is lost.

A user's file is kept beside ours as `hosts.toml.before-stafett`, a hard link made before the file is replaced. Whatever
is interrupted leaves either the old file or the new one, and a folder only together with its file.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from stafett.cli.configure.hosts_toml import Certificates, Gateway, Registry, folders_made, is_ours, render
from stafett.common.errors import StartupFailed

FILE = "hosts.toml"
KEPT = "hosts.toml.before-stafett"
_HALF = ".stafett-half"
"""End of names of files and folders that are not in place yet."""


@dataclass(frozen=True)
class Change:
    """One hosts.toml, before and after; None where there is none. `undo`: what was there at first comes back."""

    path: Path
    before: str | None
    after: str | None
    undo: bool = False


def changes_for(root: Path, registries: Sequence[Registry], gateway: Gateway) -> list[Change]:
    """Tell what has to change so that exactly these registries go through the gateway.

    Raises:
        StartupFailed: if a user's file cannot be read.
    """
    found = []
    undone = removals(root)
    made_above = max((folders_made(change.before or "") - 1 for change in undone), default=0)
    for registry in registries:
        folder = folder_of(root, registry.name)
        before, kept = _read(folder / FILE), _read(folder / KEPT)
        ours = before is not None and is_ours(before)
        if not ours and before is not None and kept is not None and kept != before:
            raise StartupFailed(
                f"{folder / FILE} was changed by somebody else, and {folder / KEPT} is there, too: remove one of them"
            )
        own = kept if ours else before
        made = folders_made(before) if ours and before else len(_missing(folder))
        if made == 1:
            made += max(0, made_above)
        described = replace(registry, certificates=_certificates(folder)) if own is None else registry
        after = render(described, gateway, own or "", made)
        if after != before:
            found.append(Change(folder / FILE, before, after))
    wanted = {folder_of(root, registry.name) for registry in registries}
    return found + [change for change in undone if change.path.parent not in wanted]


def removals(root: Path) -> list[Change]:
    """Tell what has to change so that everything is as it was before the first run."""
    found = []
    for path in sorted(root.glob(f"*/{FILE}")):
        before = _read(path)
        if before is not None and is_ours(before) and not path.parent.name.endswith(_HALF):
            found.append(Change(path, before, _read(path.with_name(KEPT)), undo=True))
    return sorted(found, key=lambda change: folders_made(change.before or ""))  # who made the root goes last


def carry_out(root: Path, changes: Sequence[Change]) -> None:
    """Make the changes; each is atomic, and can be made again after an interruption.

    Raises:
        StartupFailed: if the folder cannot be written.
    """
    try:
        _sweep(root)
        for change in changes:
            _put_back(change) if change.undo else _put(change)
    except OSError as error:
        raise StartupFailed(f"{error.filename or root} cannot be written: {error.strerror}") from error


def folder_of(root: Path, registry: str) -> Path:
    """Find a registry's folder: with a port the one that is there of the two names that containerd looks for."""
    host, colon, port = registry.rpartition(":")
    if not colon:
        return root / registry
    plain = root / registry
    return plain if plain.is_dir() else root / f"{host}_{port}_"


def _read(path: Path) -> str | None:
    try:
        return path.read_text()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise StartupFailed(f"{path} cannot be read: {error}") from error


def _certificates(folder: Path) -> Certificates:
    names = sorted(path.name for path in folder.glob("*") if path.is_file())
    pairs = tuple(
        (name, key)
        for name in names
        if name.endswith(".cert") and (key := f"{name.removesuffix('.cert')}.key") in names
    )
    return Certificates(tuple(name for name in names if name.endswith(".crt")), pairs)


def _missing(folder: Path) -> list[Path]:
    """Folders that would have to be made, the innermost first."""
    return [path for path in (folder, *folder.parents) if not path.exists()]


def _put(change: Change) -> None:
    folder, text = change.path.parent, change.after or ""
    if missing := _missing(folder):
        _put_with_folders(missing[-1], change.path, text)
        return
    _write(half := change.path.with_name(FILE + _HALF), text)
    if change.before is not None:
        shutil.copymode(change.path, half)  # it may have a secret in a header
        if not is_ours(change.before):
            os.link(change.path, folder / KEPT)
    half.replace(change.path)
    _sync(folder)


def _put_with_folders(outermost: Path, path: Path, text: str) -> None:
    """Make a tree of folders with the file in it beside its place, then move it there as a whole."""
    half = outermost.with_name(outermost.name + _HALF)
    inside = half / path.relative_to(outermost)
    inside.parent.mkdir(parents=True)
    _write(inside, text)
    half.rename(outermost)
    _sync(outermost.parent)


def _put_back(change: Change) -> None:
    kept = change.path.with_name(KEPT)
    if kept.exists():
        kept.replace(change.path)
        return
    gone = change.path
    for folder in change.path.parents[: folders_made(change.before or "")]:
        if len(os.listdir(folder)) > 1:
            break
        gone = folder
    half = gone.with_name(gone.name + _HALF)
    gone.rename(half)  # our file and the folders made for it go at once
    if half.is_dir():
        shutil.rmtree(half)
    else:
        half.unlink()


def _sweep(root: Path) -> None:
    """Remove what an interrupted run left, and the second name of a user's file that was not replaced after all."""
    around = [path.with_name(path.name + _HALF) for path in (root, *root.parents) if path.name]
    for half in [*around, *root.glob(f"*{_HALF}"), *root.glob(f"*/*{_HALF}")]:
        if half.is_dir():
            shutil.rmtree(half)
        elif half.exists():  # asked first: on a read-only file system even removing nothing is an error
            half.unlink()
    for kept in root.glob(f"*/{KEPT}"):
        own = kept.with_name(FILE)
        if own.exists() and own.samefile(kept):
            kept.unlink()


def _write(path: Path, text: str) -> None:
    with path.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
