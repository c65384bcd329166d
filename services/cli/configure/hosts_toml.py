"""The text of a hosts.toml in which the gateway stands before everything that was there. Pure.

containerd asks the hosts in the order of the file, and `server` last (measured on 1.6 and 2.x). Tags are resolved by
the first host with both capabilities, so the gateway has "pull" only; `server` is its second port, which answers tags
while upstream is dead.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

import tomlkit
from tomlkit import TOMLDocument
from tomlkit.exceptions import ParseError
from tomlkit.items import Table

from stafett.common.errors import StartupFailed

MARK = "# Written by stafett configure; its --remove puts back what was here before."
_MADE = "# Folders made for this file: "
DEFAULT = "_default"
"""Folder that containerd uses for every registry without one of its own."""
_AT_ROOT = ("ca", "client", "skip_verify", "header", "override_path", "dial_timeout")
"""Settings that apply to `server` when they stand outside of a host."""


@dataclass(frozen=True)
class Gateway:
    """URLs of the gateway's two ports, as containerd reaches them."""

    mirror_url: str = "http://127.0.0.1:7462"
    tags_url: str = "http://127.0.0.1:7463"


@dataclass(frozen=True)
class Certificates:
    """File names in the registry's folder that containerd would use by itself if there were no hosts.toml."""

    authorities: tuple[str, ...] = ()
    clients: tuple[tuple[str, str], ...] = ()
    """Pairs of certificate and key."""


@dataclass(frozen=True)
class Registry:
    """One registry, by the name that images use; `url` where it is not the usual one."""

    name: str
    url: str = ""
    certificates: Certificates = field(default_factory=Certificates)

    @property
    def upstream_url(self) -> str:
        """Where containerd would go without a hosts.toml."""
        return self.url or ("https://registry-1.docker.io" if self.name == "docker.io" else f"https://{self.name}")


def render(registry: Registry, gateway: Gateway, own: str, folders_made: int) -> str:
    """Write the file. `own` is the user's file, empty if there is none; its hosts keep their order and settings.

    Raises:
        StartupFailed: if `own` is not TOML.
    """
    before = parse(own, registry.name)
    document = tomlkit.document()
    for line in (MARK, f"{_MADE}{folders_made}"):
        document.add(tomlkit.comment(line.removeprefix("# ")))
    server = str(before.get("server", ""))
    if registry.name != DEFAULT:
        document.add("server", gateway.tags_url)
    elif server:
        document.add("server", server)
    hosts = tomlkit.table(is_super_table=True)
    hosts.add(gateway.mirror_url, _capable("pull"))
    for url, settings in _hosts(before).items():
        if url != gateway.mirror_url:
            hosts.add(url, settings)
    upstream = server or registry.upstream_url
    if registry.name != DEFAULT and upstream not in hosts:
        hosts.add(upstream, _upstream(before, registry.certificates))
    document.add("host", hosts)
    return tomlkit.dumps(document)


def parse(text: str, name: str) -> TOMLDocument:
    """Read a hosts.toml. Raises StartupFailed: if it is not TOML."""
    try:
        return tomlkit.parse(text)
    except ParseError as error:
        raise StartupFailed(f"hosts.toml of {name} cannot be read: {error}; mend or remove it first") from error


def is_ours(text: str) -> bool:
    """Tell whether `render` wrote this."""
    return text.startswith(MARK)


def folders_made(text: str) -> int:
    """Tell how many folders were made for a file of ours."""
    found = re.search(rf"^{_MADE}(\d+)$", text, re.MULTILINE)
    return int(found[1]) if found else 0


def _hosts(document: Mapping[str, object]) -> Mapping[str, Table]:
    hosts = document.get("host", {})
    return hosts if isinstance(hosts, Mapping) else {}


def _capable(*capabilities: str) -> Table:
    table = tomlkit.table()
    table.add("capabilities", list(capabilities))
    return table


def _upstream(before: Mapping[str, object], certificates: Certificates) -> Table:
    """Upstream as a host: what the user said of `server`, or the certificates that lie beside. Pushes go there, too."""
    table = _capable("pull", "resolve", "push")
    if certificates.authorities:
        table.add("ca", list(certificates.authorities))
    if certificates.clients:
        table.add("client", [list(pair) for pair in certificates.clients])
    for key in ("capabilities", *_AT_ROOT):
        if key in before:
            table[key] = before[key]
    return table
