"""What the operator asks for: from the options of `stafett configure` to values, and back to a command."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from stafett.cli.configure.distros import DISTROS, Distro, DistroName
from stafett.cli.configure.hosts_toml import DEFAULT, Gateway, Registry
from stafett.common.errors import StartupFailed


@dataclass(frozen=True)
class Wanted:
    """The registries that are to go through a gateway, all of them."""

    registries: Sequence[Registry]
    gateway: Gateway
    distro: Distro

    def command(self, *more: str) -> str:
        """Write the command that asks for the same, and for further registries."""
        words = ["stafett", "configure"]
        for registry in (*self.registries, *map(Registry, more)):
            words += ["--registry", registry.name]
            words += ["--upstream", f"{registry.name}={registry.url}"] if registry.url else []
        usual, distro, usual_distro = Gateway(), self.distro, DISTROS[self.distro.name]
        options = {
            "--gateway": (self.gateway.mirror_url, usual.mirror_url),
            "--tags": (self.gateway.tags_url, usual.tags_url),
            "--distro": (distro.name, DistroName.CONTAINERD),
            "--hosts-dir": (str(distro.hosts_dir), str(usual_distro.hosts_dir)),
            "--config": (str(distro.config), str(usual_distro.config)),
        }
        words += [word for option, (value, usually) in options.items() if value != usually for word in (option, value)]
        return shlex.join(words)


def registries_of(names: Iterable[str], urls: Iterable[str]) -> list[Registry]:
    """Read `--registry NAME` and `--upstream NAME=URL`. Raises StartupFailed."""
    by_name: dict[str, str] = {}
    for pair in urls:
        name, _, url = pair.partition("=")
        by_name[name] = _url(f"--upstream {pair}: must be NAME=URL with a URL that", url)
    registries = [Registry(name, by_name.pop(name, "")) for name in dict.fromkeys(names)]
    if by_name:
        raise StartupFailed(f"--upstream {next(iter(by_name))}: no --registry has this name")
    for registry in registries:
        if not registry.name or registry.name.startswith(".") or any(each in registry.name for each in "/ \t\n"):
            raise StartupFailed(
                f"--registry {registry.name!r}: must be a host name, with a port if need be, or {DEFAULT}"
            )
    return registries


def gateway_of(mirror_url: str, tags_url: str) -> Gateway:
    """Read `--gateway URL` and `--tags URL`. Raises StartupFailed."""
    return Gateway(_url(f"--gateway {mirror_url}:", mirror_url), _url(f"--tags {tags_url}:", tags_url))


def _url(complaint: str, url: str) -> str:
    """Return a URL without its last slash. containerd would take one without a scheme for https."""
    try:
        parts = urlsplit(url)
        right = parts.scheme in ("http", "https") and parts.hostname and (parts.port or 1)
    except ValueError:
        right = False
    if not right or any(each in url for each in "?# "):
        raise StartupFailed(f"{complaint} has to be http://host:port or https://host:port")
    return url.rstrip("/")
