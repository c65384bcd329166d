"""What can be wrong on the host itself: containerd's configuration, its mirror files, its store, its proxies."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import urlsplit

from stafett.cli.configure.hosts_toml import DEFAULT, is_ours, parse
from stafett.cli.configure.mirror_files import FILE, KEPT, folder_of
from stafett.cli.containerd_config import ContainerdConfig
from stafett.cli.doctor.setup import Setup
from stafett.cli.doctor.verdict import Verdict, fail, ok, warn
from stafett.common.blob_files import blob_path
from stafett.common.digest import Digest
from stafett.common.errors import StafettError, StartupFailed
from stafett.common.reference import Reference

CONFIGURE = "stafett configure --registry NAME ..."
_BLOBS_LOOKED_AT = 200


@dataclass(frozen=True)
class Store:
    """What the host's store has: blobs with their sizes, names of images."""

    blobs: Mapping[Digest, int]
    images: Sequence[str]


def check_config(setup: Setup) -> Iterator[Verdict]:
    """Does containerd look for mirror files, and does it keep layers?"""
    change = setup.distro.exact_change(setup.hosts_dir)
    try:
        config = ContainerdConfig.read(setup.config)
    except StartupFailed as error:
        yield fail("containerd-config", str(error), "mend the file, or name the right one by --config")
        return
    if config is None:
        yield warn("containerd-config", f"{setup.config} is not there", "name containerd's config.toml by --config")
        return
    if config.uses(setup.hosts_dir):
        yield ok("config-path", f"containerd looks for mirror files in {setup.hosts_dir}")
    else:
        told = f"config_path is {config.config_path}" if config.config_path else "config_path is not set"
        yield fail("config-path", f"{told} in {config.path}: mirror files are not used by pods", change)
    if config.discards_layers:
        yield fail("discard-layers", f"discard_unpacked_layers is on in {config.path}: nothing to share here", change)
    else:
        yield ok("discard-layers", "containerd keeps layers")


def check_mirror_files(setup: Setup) -> Iterator[Verdict]:
    """Are the mirror files as `configure` writes them for this gateway?"""
    ours, wrong = 0, False
    for path in sorted(setup.hosts_dir.glob(f"*/{FILE}")):
        try:
            text = path.read_text()
            first, last = _ends(parse(text, path.parent.name))
        except (StartupFailed, UnicodeDecodeError) as error:
            wrong = True
            yield fail("mirror-files", f"{path}: {error}", f"mend or remove it, then: {CONFIGURE}")
            continue
        if is_ours(text):
            ours += 1
            if first != setup.mirror_url or (path.parent.name != DEFAULT and last != setup.tags_url):
                wrong = True
                said = f"{path} leads to {first} and {last}, but the gateway is {setup.mirror_url}, {setup.tags_url}"
                yield fail("mirror-files", said, f"run again: {CONFIGURE} --gateway {setup.mirror_url} --tags ...")
        elif path.with_name(KEPT).exists():
            wrong = True
            remedy = f"remove {path} or {path.with_name(KEPT)}, then: {CONFIGURE}"
            yield fail("mirror-files", f"{path} was replaced by somebody else", remedy)
    if not ours and not wrong:
        yield fail("mirror-files", f"no registry in {setup.hosts_dir} goes through the gateway", CONFIGURE)
    elif not wrong:
        yield ok("mirror-files", f"{ours} registries go through the gateway")


def check_content_root(setup: Setup, store: Store) -> Iterator[Verdict]:
    """Is the folder that the node reads containerd's, with the unfinished downloads in it?"""
    root, check = setup.node.content_root, "content-root"
    if root is None:
        remedy = "mount containerd's content root read-only, and set STAFETT_NODE_CONTENT_ROOT"
        yield warn(check, "not set: blobs go through containerd's API, and no download can be passed on", remedy)
        return
    sample = list(store.blobs)[:_BLOBS_LOOKED_AT]
    missing = [digest for digest in sample if not os.access(blob_path(root, digest), os.R_OK)]
    if sample and len(missing) == len(sample):
        remedy = "set STAFETT_NODE_CONTENT_ROOT to <containerd's root>/io.containerd.content.v1.content, as mounted"
        yield fail(check, f"{root} has none of the blobs that containerd lists", remedy)
    elif not sample and not os.access(root / "blobs", os.R_OK | os.X_OK):
        yield fail(check, f"{root}/blobs cannot be read", "mount containerd's content root there, readable")
    else:
        yield ok(check, f"{root} is containerd's")
        if setup.node.store == "containerd" and not os.access(root / "ingest", os.R_OK | os.X_OK):
            yield fail("ingests", f"{root}/ingest cannot be read", "let the node read it: it passes downloads on")


def check_images(setup: Setup, store: Store) -> Iterator[Verdict]:
    """Do the images of this host go through the gateway, and does it serve them?"""
    found = [reference for name in store.images if (reference := _reference(name))]
    names = {f"{reference.registry}/{reference.repository}" for reference in found}
    registries = {name.partition("/")[0] for name in names}
    covered = (setup.hosts_dir / DEFAULT / FILE).exists() or not list(setup.hosts_dir.glob(f"*/{FILE}"))
    left_out = sorted(
        each for each in registries if not covered and not (folder_of(setup.hosts_dir, each) / FILE).exists()
    )
    if left_out:
        remedy = f"add them: {CONFIGURE.replace('NAME', left_out[0])}"
        yield warn("registries", f"images here come from {', '.join(left_out)}, which no mirror file has", remedy)
    refused = sorted(name for name in names if not setup.gateway.serves(name))
    if refused:
        remedy = "change STAFETT_GATEWAY_ALLOW or STAFETT_GATEWAY_DENY, if they are to be shared"
        yield warn("allow-list", f"the gateway does not serve {', '.join(refused[:5])}, which this host has", remedy)
    if not left_out and not refused:
        yield ok("registries", f"all {len(names)} images of this host can be shared")


def check_proxies(setup: Setup) -> Iterator[Verdict]:
    """Would a proxy of containerd's catch what it asks the gateway?"""
    environment = _containerd_environment(setup.node.containerd_socket)
    if environment is None:
        return
    proxies = [name for name in ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy") if environment.get(name)]
    spared = environment.get("NO_PROXY", environment.get("no_proxy", "")).split(",")
    for path in sorted(setup.hosts_dir.glob(f"*/{FILE}")):
        try:
            host = urlsplit(_ends(parse(path.read_text(), path.parent.name))[0]).hostname or ""
        except (StartupFailed, UnicodeDecodeError):
            continue  # said among the mirror files
        if proxies and not _loopback(host) and host not in map(str.strip, spared):
            said = f"containerd has {proxies[0]}: it asks the gateway at {host} through {environment[proxies[0]]}"
            yield fail("proxy", said, f"add {host} to NO_PROXY of containerd's service, and restart it")
            return
    yield ok("proxy", "no proxy stands between containerd and the gateway")


def _ends(document: Mapping[str, object]) -> tuple[str, str]:
    hosts = document.get("host", {})
    first = next(iter(hosts), "") if isinstance(hosts, Mapping) else ""
    return str(first), str(document.get("server", ""))


def _reference(name: str) -> Reference | None:
    try:
        return Reference.parse(name)
    except StafettError:
        return None


def _loopback(host: str) -> bool:
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def _containerd_environment(path: Path) -> Mapping[str, str] | None:
    """Read the environment of the process behind the socket; None where that is not allowed."""
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(path))
            sent = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        pid = struct.unpack("3i", sent)[0]
        text = Path(f"/proc/{pid}/environ").read_bytes().decode("utf-8", "replace")
    except OSError:
        return None
    return dict(entry.partition("=")[::2] for entry in text.split("\0") if "=" in entry)
