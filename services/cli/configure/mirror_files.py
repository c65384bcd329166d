"""The folder of containerd's mirror files (certs.d): what is in it, and what has to change. Writes nothing.

A user's file is kept beside ours as `hosts.toml.before-stafett`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from stafett.cli.configure.hosts_toml import (
    DEFAULT,
    Gateway,
    Origin,
    Registry,
    Settings,
    origin_of,
    parse,
    read_from,
    render,
)
from stafett.common.errors import StartupFailed

FILE = "hosts.toml"
KEPT = "hosts.toml.before-stafett"
HALF = ".stafett-half"
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
        StartupFailed: if an operator's file cannot be read, or one of ours was replaced.
        OSError: if a folder cannot be read.
    """
    found = []
    undone = removals(root)
    made_above = max((folders_made(change) - 1 for change in undone), default=0)
    for registry in registries:
        folder = folder_of(root, registry.name)
        before = _read(folder / FILE)
        origin = origin_of(before or "")
        made = origin.folders_made if origin else len(missing(folder))
        if made == 1:
            made += max(0, made_above)
        after = render(Origin(registry, gateway, made), _own_settings(root, folder))
        if after != before:
            found.append(Change(folder / FILE, before, after))
    wanted = {folder_of(root, registry.name) for registry in registries}
    return found + [change for change in undone if change.path.parent not in wanted]


def removals(root: Path) -> list[Change]:
    """Tell what has to change so that everything is as it was before the first run.

    Raises:
        StartupFailed, OSError: if a folder cannot be read.
    """
    found = [Change(path, text, _read(path.with_name(KEPT)), undo=True) for path, text in _our_files(root)]
    return sorted(found, key=folders_made)  # who made the root goes last


def origins(root: Path) -> list[Origin]:
    """Tell what our files in the folder were made from. Raises StartupFailed, OSError: if a folder cannot be read."""
    return [origin for _, text in _our_files(root) if (origin := origin_of(text))]


def replaced(root: Path) -> list[Path]:
    """Find files of ours that somebody else has replaced since: the operator's is still kept beside them."""
    found = [folder for folder in _registry_folders(root) if _read(folder / KEPT) not in (None, _read(folder / FILE))]
    return [folder / FILE for folder in found if origin_of(_read(folder / FILE) or "") is None]


def goes_through(root: Path, registry: str) -> bool:
    """Tell whether containerd, which takes the first folder that is there, finds a file of ours for a registry."""
    folders = (*_folders(root, registry), root / DEFAULT)
    folder = next((folder for folder in folders if folder.exists()), root)
    return origin_of(_read(folder / FILE) or "") is not None


def folder_of(root: Path, registry: str) -> Path:
    """Find a registry's folder: the one that containerd finds, or would if it were there."""
    folders = _folders(root, registry)
    return next((folder for folder in folders if folder.exists()), folders[0])


def missing(folder: Path) -> list[Path]:
    """Folders that would have to be made, the innermost first."""
    return [path for path in (folder, *folder.parents) if not path.exists()]


def folders_made(change: Change) -> int:
    """Tell how many folders were made for the file that is there."""
    origin = origin_of(change.before or "")
    return origin.folders_made if origin else 0


def _folders(root: Path, registry: str) -> list[Path]:
    """Name a registry's folders in the order in which containerd looks for them."""
    host, colon, port = registry.rpartition(":")
    return [root / f"{host}_{port}_", root / registry] if colon else [root / registry]


def _own_settings(root: Path, folder: Path) -> Settings:
    """What containerd would find without us: the registry's own folder, else that of all others."""
    own = _operators(folder)
    if own is None and folder.name != DEFAULT:
        return read_from(_operators(root / DEFAULT) or {}, f"../{DEFAULT}")
    return own or {}


def _operators(folder: Path) -> Settings | None:
    """What the operator says in a folder, in a file or by certificates alone; None if the folder is not theirs."""
    text, kept = _read(folder / FILE), _read(folder / KEPT)
    origin = origin_of(text or "")
    if origin is None and kept not in (None, text):
        raise StartupFailed(
            f"{folder / FILE} is not the one that stafett configure wrote, but what was there before is still kept in "
            f"{folder / KEPT}: remove that, or put it back"
        )
    if own := kept if origin else text:
        return parse(own, folder / FILE)
    ours = not folder.exists() or (origin is not None and origin.folders_made > 0)
    certificates = _certificates(folder)
    return None if ours and not certificates else certificates


def _certificates(folder: Path) -> Settings:
    """What containerd would use by itself if there were no hosts.toml."""
    names = sorted(path.name for path in folder.glob("*") if path.is_file())
    authorities = [name for name in names if name.endswith(".crt")]
    keys = {name: f"{name.removesuffix('.cert')}.key" for name in names if name.endswith(".cert")}
    clients = [[name, key if key in names else name] for name, key in keys.items()]
    return {key: value for key, value in (("ca", authorities), ("client", clients)) if value}


def _our_files(root: Path) -> list[tuple[Path, str]]:
    read = [(folder / FILE, _read(folder / FILE)) for folder in _registry_folders(root)]
    return [(path, text) for path, text in read if text is not None and origin_of(text)]


def _registry_folders(root: Path) -> list[Path]:
    names = sorted(os.listdir(root)) if root.is_dir() else []
    return [root / name for name in names if not name.endswith(HALF)]


def _read(path: Path) -> str | None:
    try:
        return path.read_text()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise StartupFailed(f"{path} cannot be read: {error}") from error
