"""Changes the folder of mirror files so that nothing is lost.

A user's file is kept by a hard link, made before the file is replaced. Whatever is interrupted leaves either the old
file or the new one, and a folder only together with its file.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from stafett.cli.configure.hosts_toml import DEFAULT, origin_of
from stafett.cli.configure.mirror_files import FILE, HALF, KEPT, Change, folders_made, missing
from stafett.common.errors import StartupFailed


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


def _put(change: Change) -> None:
    folder, text = change.path.parent, change.after or ""
    if absent := missing(folder):
        _put_with_folders(absent[-1], change.path, text)
        return
    _write(half := change.path.with_name(FILE + HALF), text, _pattern(change.path))
    if change.before is not None and origin_of(change.before) is None:
        os.link(change.path, folder / KEPT)
    half.replace(change.path)
    _sync(folder)


def _put_with_folders(outermost: Path, path: Path, text: str) -> None:
    """Make a tree of folders with the file in it beside its place, then move it there as a whole."""
    half = outermost.with_name(outermost.name + HALF)
    inside = half / path.relative_to(outermost)
    inside.parent.mkdir(parents=True)
    _write(inside, text, _pattern(path))
    half.rename(outermost)
    _sync(outermost.parent)


def _put_back(change: Change) -> None:
    kept = change.path.with_name(KEPT)
    if kept.exists():
        kept.replace(change.path)
        return
    gone = change.path
    for folder in change.path.parents[: folders_made(change)]:
        if len(os.listdir(folder)) > 1:
            break
        gone = folder
    half = gone.with_name(gone.name + HALF)
    gone.rename(half)  # our file and the folders made for it go at once
    if half.is_dir():
        shutil.rmtree(half)
    else:
        half.unlink()


def _sweep(root: Path) -> None:
    """Remove what an interrupted run left, and the second name of a user's file that was not replaced after all."""
    around = [path.with_name(path.name + HALF) for path in (root, *root.parents) if path.name]
    for half in [*around, *root.glob(f"*{HALF}"), *root.glob(f"*/*{HALF}")]:
        if half.is_dir():
            shutil.rmtree(half)
        elif half.exists():  # asked first: on a read-only file system even removing nothing is an error
            half.unlink()
    for kept in root.glob(f"*/{KEPT}"):
        own = kept.with_name(FILE)
        if own.exists() and own.samefile(kept):
            kept.unlink()


def _pattern(path: Path) -> Path | None:
    """Find the file that the new one is made from: it may have a secret in a header, and be readable for few."""
    return next((each for each in (path, path.parents[1] / DEFAULT / FILE) if each.exists()), None)


def _write(path: Path, text: str, pattern: Path | None) -> None:
    path.touch(0o600 if pattern else 0o666)
    with path.open("w") as file:
        file.write(text)
        if pattern:
            shutil.copymode(pattern, path)
        file.flush()
        os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
