"""What containerd's configuration file says of mirrors and layers, in the words of its version, with imports."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from glob import glob
from os.path import normpath
from pathlib import Path

from stafett.common.errors import StartupFailed


@dataclass(frozen=True)
class ContainerdConfig:
    """`config_path` is where mirror files are looked for, empty: nowhere."""

    path: Path
    version: int
    config_path: str
    discards_layers: bool
    excludes_config_path: bool
    """Whether it has registry tables beside which containerd's CRI does not start with a config_path."""
    pulls_locally: bool
    """Whether it says that CRI is not to pull through the transfer service (containerd 2.1 and newer)."""

    @classmethod
    def read(cls, path: Path) -> ContainerdConfig | None:
        """Read the file; None if there is none.

        Raises:
            StartupFailed: if it, or what it imports, cannot be read.
        """
        if not path.exists():
            return None
        documents = _documents(path)
        version = next((found for each in reversed(documents) if isinstance(found := each.get("version"), int)), 1)
        merged: Mapping[str, object] = {}
        for document in documents:
            plugins = _inside(document, "plugins")
            # containerd 1.x replaces a plugin's whole table by an import's, 2.x merges them (tried on both).
            merged = _merge(merged, plugins) if version > 2 else {**merged, **plugins}
        images = _inside(merged, plugin_of(version))
        registry, layers = _inside(images, "registry"), images if version > 2 else _inside(images, "containerd")
        hosts = _inside(registry, "configs")
        return cls(
            path,
            version,
            str(registry.get("config_path", "")),
            bool(layers.get("discard_unpacked_layers")),
            bool(registry.get("mirrors")) or any("tls" in _inside(hosts, host) for host in hosts),
            bool(images.get("use_local_image_pull")),
        )

    def uses(self, hosts_dir: Path) -> bool:
        """Tell whether mirror files are looked for in this folder."""
        return str(hosts_dir).rstrip("/") in (part.rstrip("/") for part in self.config_path.split(":"))


def plugin_of(version: int) -> str:
    """Name the plugin that pulls images for pods, as a file of this version calls it."""
    return {1: "cri", 2: "io.containerd.grpc.v1.cri"}.get(version, "io.containerd.cri.v1.images")


def _documents(path: Path) -> list[Mapping[str, object]]:
    """Read a file and what it imports, each once, in the order in which containerd merges them."""
    found: dict[Path, Mapping[str, object]] = {}
    pending = [path]
    while pending:
        path = pending.pop(0)
        if path in found:
            continue
        try:
            found[path] = tomllib.loads(path.read_text())
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise StartupFailed(f"{path} cannot be read: {error}") from error
        imports = found[path].get("imports", [])
        for pattern in imports if isinstance(imports, list) else []:
            pending += [Path(normpath(each)) for each in sorted(glob(str(path.parent / str(pattern))))]
    return list(found.values())


def _merge(into: Mapping[str, object], table: Mapping[str, object]) -> Mapping[str, object]:
    deeper = {key: _merge(_inside(into, key), value) for key, value in table.items() if isinstance(value, Mapping)}
    return {**into, **table, **deeper}


def _inside(table: Mapping[str, object], key: str) -> Mapping[str, object]:
    value = table.get(key, {})
    return value if isinstance(value, Mapping) else {}
