"""The text of a hosts.toml in which the gateway stands before everything that was there. Pure.

containerd asks the hosts in the order of the file, and `server` last (measured on 1.6 and 2.x). Tags are resolved by
the first host with both capabilities, so the gateway has "pull" only; `server` is its second port, which answers tags
while upstream is dead. The first lines tell what the file was made from, so that it can be made again and compared.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass

import tomlkit

from stafett.common.errors import StartupFailed
from stafett.gateway.upstream_probe import upstream_url

MARK = "# Written by stafett configure; its --remove puts back what was here before."
DEFAULT = "_default"
"""Folder that containerd uses for every registry without one of its own."""
_OF_SERVER = ("capabilities", "ca", "client", "skip_verify", "header", "override_path", "dial_timeout")
"""Settings that apply to `server` when they stand outside of a host."""

Settings = Mapping[str, object]
"""What the operator says in a folder: the keys of a hosts.toml."""


@dataclass(frozen=True)
class Gateway:
    """URLs of the gateway's two ports, as containerd reaches them."""

    mirror_url: str = "http://127.0.0.1:7462"
    tags_url: str = "http://127.0.0.1:7463"


@dataclass(frozen=True)
class Registry:
    """One registry, by the name that images use; `url` where it is not the usual one."""

    name: str
    url: str = ""


@dataclass(frozen=True)
class Origin:
    """What a file of ours is made from, apart from the operator's settings."""

    registry: Registry
    gateway: Gateway
    folders_made: int = 0
    """Folders that were made for this file."""


def render(origin: Origin, own: Settings) -> str:
    """Write the file. The operator's hosts keep their order and settings, behind the gateway."""
    registry, gateway = origin.registry, origin.gateway
    hosts: dict[str, object] = {gateway.mirror_url: {"capabilities": ["pull"]}}
    hosts.update((url, said) for url, said in _hosts(own).items() if url != gateway.mirror_url)
    of_server = {key: own[key] for key in _OF_SERVER if key in own}
    document: dict[str, object] = {}
    if registry.name == DEFAULT:
        document = {key: own[key] for key in ("server", *_OF_SERVER) if key in own}
    else:
        upstream = str(own.get("server", "")) or registry.url or upstream_url(registry.name, {})
        # containerd ignores a fragment: with it the same URL can stand there twice, once with each one's settings.
        upstream += "#server" if upstream in hosts else ""
        hosts[upstream] = {"capabilities": ["pull", "resolve", "push"], **of_server}
        document = {"server": gateway.tags_url}
    head = (
        MARK,
        f"# Registry: {registry.name} {registry.url}".rstrip(),
        f"# Gateway: {gateway.mirror_url} {gateway.tags_url}",
        f"# Folders made for this file: {origin.folders_made}",
    )
    return "\n".join((*head, tomlkit.dumps({**document, "host": hosts})))


def origin_of(text: str) -> Origin | None:
    """Tell what `render` made a file from; None if it is not ours."""
    if not text.startswith(MARK):
        return None
    name, url = _head(text, "Registry")
    mirror_url, tags_url = _head(text, "Gateway")
    made, _ = _head(text, "Folders made for this file")
    return Origin(Registry(name, url), Gateway(mirror_url, tags_url), int(made) if made.isdigit() else 0)


def parse(text: str, path: object) -> Settings:
    """Read an operator's hosts.toml. Raises StartupFailed: if containerd could not, either."""
    try:
        settings = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise StartupFailed(f"{path} cannot be read: {error}; mend or remove it first") from error
    hosts = settings.get("host", {})
    if not isinstance(hosts, dict) or not all(isinstance(said, dict) for said in hosts.values()):
        raise StartupFailed(f"{path}: host has to be a table of tables; mend or remove it first")
    return settings


def read_from(own: Settings, folder: str) -> Settings:
    """Say the same in a file of another folder, from which `folder` leads back: certificates stay where they are."""
    said = {key: _below(folder, value) if key in ("ca", "client") else value for key, value in own.items()}
    if hosts := _hosts(own):
        said["host"] = {url: read_from(settings, folder) for url, settings in hosts.items()}
    return said


def _below(folder: str, value: object) -> object:
    if isinstance(value, list):
        return [_below(folder, each) for each in value]
    return f"{folder}/{value}" if isinstance(value, str) and value and not value.startswith("/") else value


def _hosts(settings: Settings) -> Mapping[str, Settings]:
    hosts = settings.get("host", {})
    return hosts if isinstance(hosts, Mapping) else {}


def _head(text: str, label: str) -> tuple[str, str]:
    found = re.search(rf"^# {label}: (\S+) ?(\S*)$", text, re.MULTILINE)
    return (found[1], found[2]) if found else ("", "")
