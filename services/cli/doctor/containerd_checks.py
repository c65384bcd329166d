"""What can be wrong with containerd itself: its configuration, and the proxies in its environment."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterable, Iterator, Mapping
from ipaddress import ip_address, ip_network
from pathlib import Path
from urllib.parse import urlsplit

from stafett.cli.configure.distros import Distro
from stafett.cli.containerd_config import ContainerdConfig, plugin_of
from stafett.cli.doctor.verdict import Verdict, fail, ok, warn
from stafett.common.errors import StartupFailed

_USUAL_VERSION = 2
"""Of a configuration that is not there: containerd 1.x and 2.x both read it."""


def check_config(distro: Distro) -> Iterator[Verdict]:
    """Does containerd look for mirror files, and does it keep layers?"""
    try:
        config = ContainerdConfig.read(distro.config)
    except (StartupFailed, OSError) as error:
        yield fail("config-path", str(error), "mend it, run this as root, or name the right file by --config")
        return
    change = distro.exact_change(config.version if config else _USUAL_VERSION)
    if config is None:
        said = f"{distro.config} is not there: without it containerd looks for no mirror files"
        yield fail("config-path", said, f"name the right file by --config, or write it. {change}")
        return
    yield _config_path(config, distro.hosts_dir, change)
    if config.discards_layers:
        said = f"discard_unpacked_layers is on in {config.path}: this host has nothing to share"
        yield fail("discard-layers", said, change)
    else:
        yield ok("discard-layers", "containerd keeps layers")


def _config_path(config: ContainerdConfig, hosts_dir: Path, change: str) -> Verdict:
    table = f'[plugins."{plugin_of(config.version)}".registry] of version {config.version}'
    old = "move what registry.mirrors and registry.configs.*.tls say into mirror files, and remove them"
    if not config.uses(hosts_dir):
        told = f"is {config.config_path}" if config.config_path else "is not set"
        said = f"config_path {told} in {config.path}, {table}: pods are pulled without {hosts_dir}"
        return fail("config-path", said, f"{old}. {change}" if config.excludes_config_path else change)
    if config.excludes_config_path:
        said = f"registry.mirrors or registry.configs.*.tls stand beside config_path in {config.path}: CRI cannot start"
        return fail("config-path", said, f"{old}; then restart containerd")
    if ":" in config.config_path and config.version > 2 and not config.pulls_locally:
        said = f"config_path is {config.config_path}: containerd 2.1 and newer take the list for one folder"
        return warn("config-path", said, change)
    return ok("config-path", f"containerd looks for mirror files in {hosts_dir}")


def check_proxies(containerd_socket: Path, mirror_urls: Iterable[str]) -> Iterator[Verdict]:
    """Would a proxy of containerd's catch what it asks the gateway?"""
    environment = _containerd_environment(containerd_socket)
    if environment is None:
        return
    no_proxy = environment.get("NO_PROXY") or environment.get("no_proxy", "")
    for url in mirror_urls:
        variable = f"{urlsplit(url).scheme}_proxy"
        proxy = environment.get(variable.upper()) or environment.get(variable)
        if proxy and not spared(url, no_proxy):
            remedy = f"add {urlsplit(url).hostname} to NO_PROXY of containerd's service, and restart it"
            yield fail("proxy", f"containerd asks the gateway at {url} through its proxy {proxy}", remedy)
            return
    yield ok("proxy", "no proxy stands between containerd and the gateway")


def spared(url: str, no_proxy: str) -> bool:
    """Tell whether a URL is asked without the proxy, by the rules of Go's libraries: loopback always is."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    try:
        loopback = ip_address(host).is_loopback
    except ValueError:
        loopback = host == "localhost"
    port = str(parts.port or {"http": 80}.get(parts.scheme, 443))
    entries = (entry.strip().lower() for entry in no_proxy.split(","))
    return loopback or any(_covers(entry, host, port) for entry in entries if entry)


def _covers(entry: str, host: str, port: str) -> bool:
    """Tell whether one entry of NO_PROXY means a host: an address, a network, a domain, each with a port or without."""
    try:
        return ip_address(host) in ip_network(entry, strict=False)
    except ValueError:
        pass
    name, colon, only_port = entry.rpartition(":")
    if colon and only_port.isdigit():
        return only_port == port and _covers(name.strip("[]"), host, port)
    return entry in ("*", host) or host.endswith("." + entry.removeprefix("*").removeprefix("."))


def _containerd_environment(path: Path) -> Mapping[str, str] | None:
    """Read the environment of the process behind the socket; None where that is not allowed."""
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(path))
            sent = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        text = Path(f"/proc/{struct.unpack('3i', sent)[0]}/environ").read_bytes().decode("utf-8", "replace")
    except OSError:
        return None
    return dict(entry.partition("=")[::2] for entry in text.split("\0") if "=" in entry)
