"""What containerd's configuration file says of mirrors and layers, in its versions 2 and 3, with imports."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from glob import glob
from pathlib import Path

from stafett.common.errors import StartupFailed

_CRI = "io.containerd.grpc.v1.cri"
_IMAGES = "io.containerd.cri.v1.images"
_DEPTH_MAX = 5


@dataclass(frozen=True)
class ContainerdConfig:
    """`config_path` is where mirror files are looked for, empty: nowhere."""

    path: Path
    config_path: str
    discards_layers: bool

    @classmethod
    def read(cls, path: Path) -> ContainerdConfig | None:
        """Read the file; None if there is none.

        Raises:
            StartupFailed: if it, or what it imports, cannot be read.
        """
        if not path.exists():
            return None
        config_path, discards = "", False
        for document in _documents(path, 0):
            for cri in _cri_tables(document):
                config_path = str(_inside(cri, "registry").get("config_path", config_path))
                discards = bool(_inside(cri, "containerd").get("discard_unpacked_layers", discards))
                discards = bool(cri.get("discard_unpacked_layers", discards))
        return cls(path, config_path, discards)

    def uses(self, hosts_dir: Path) -> bool:
        """Tell whether mirror files are looked for in this folder."""
        return str(hosts_dir).rstrip("/") in (part.rstrip("/") for part in self.config_path.split(":"))


def _documents(path: Path, depth: int) -> Iterator[Mapping[str, object]]:
    """Yield a file and then what it imports, in the order in which containerd merges them: later ones win."""
    try:
        document = tomllib.loads(path.read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise StartupFailed(f"{path} cannot be read: {error}") from error
    yield document
    imports = document.get("imports", [])
    if isinstance(imports, list) and depth < _DEPTH_MAX:
        for pattern in map(str, imports):
            for found in sorted(glob(pattern if pattern.startswith("/") else str(path.parent / pattern))):
                yield from _documents(Path(found), depth + 1)


def _cri_tables(document: Mapping[str, object]) -> Iterator[Mapping[str, object]]:
    plugins = _inside(document, "plugins")
    yield from (_inside(plugins, name) for name in (_CRI, _IMAGES))


def _inside(table: Mapping[str, object], key: str) -> Mapping[str, object]:
    value = table.get(key, {})
    return value if isinstance(value, Mapping) else {}
