"""What can be wrong on the host itself: mirror files, certificates, containerd's store and what is in it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from stafett.cli.configure.mirror_files import KEPT, changes_for, goes_through, replaced
from stafett.cli.doctor.setup import Setup
from stafett.cli.doctor.verdict import Verdict, fail, ok, warn
from stafett.common.blob_files import blob_path
from stafett.common.digest import Digest
from stafett.common.errors import StafettError, StartupFailed
from stafett.common.reference import Reference
from stafett.common.tls_files import kept

_BLOBS_LOOKED_AT = 200


@dataclass(frozen=True)
class Store:
    """What the host's store has: blobs with their sizes, names of images."""

    blobs: Mapping[Digest, int]
    images: Sequence[str]


def check_mirror_files(setup: Setup) -> Iterator[Verdict]:
    """Are the mirror files what `configure` would write for the same registries and this gateway?"""
    check, root = "mirror-files", setup.distro.hosts_dir
    try:
        wanted = setup.configured
        changed, changes = replaced(root), changes_for(root, wanted.registries, wanted.gateway)
    except (StartupFailed, OSError) as error:
        yield fail(check, str(error), "mend or remove it, or run this as root")
        return
    for path in changed:
        name = re.sub(r"_(\d+)_$", r":\1", path.parent.name)
        remedy = f"remove {path} or {path.with_name(KEPT)}, then: {wanted.command(name)}"
        yield fail(check, f"{path} was replaced by somebody else", remedy)
    for change in changes:
        remedy = f"write it again, or see the difference with --check: {wanted.command()}"
        yield fail(check, f"{change.path} is not what stafett configure writes for {wanted.gateway.mirror_url}", remedy)
    if not wanted.registries and not changed:
        remedy = f"name the registries of your images: {wanted.command('NAME')}"
        yield fail(check, f"no registry in {root} goes through the gateway", remedy)
    elif not changed and not changes:
        yield ok(check, f"{len(wanted.registries)} registries go through the gateway")


def check_certificates(setup: Setup) -> Iterator[Verdict]:
    """Are the certificates of use with which the trackers and the peers are asked?"""
    for tls in dict.fromkeys(tls for tls in (setup.node.tls, setup.gateway.tls) if tls):
        try:
            kept(tls)
        except StartupFailed as error:
            yield fail("tls", str(error), "run this as root, or correct STAFETT_NODE_TLS_* and STAFETT_GATEWAY_TLS_*")


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
    root = setup.distro.hosts_dir
    try:
        wanted = setup.configured
    except (StartupFailed, OSError):
        return  # said among the mirror files
    found = [reference for name in store.images if (reference := _reference(name))]
    names = {f"{reference.registry}/{reference.repository}" for reference in found}
    registries = sorted({reference.registry for reference in found})
    left_out = [each for each in registries if wanted.registries and not goes_through(root, each)]
    if left_out:
        said = f"images here come from {', '.join(left_out)}, which no mirror file of ours has"
        yield warn("registries", said, f"if they are to be shared: {wanted.command(*left_out)}")
    refused = sorted(name for name in names if not setup.gateway.serves(name))
    if refused:
        remedy = "change STAFETT_GATEWAY_ALLOW or STAFETT_GATEWAY_DENY, if they are to be shared"
        yield warn("allow-list", f"the gateway does not serve {', '.join(refused[:5])}, which this host has", remedy)
    if not left_out and not refused:
        yield ok("registries", f"all {len(names)} images of this host can be shared")


def _reference(name: str) -> Reference | None:
    """Read an image's name; None for what is none, as the records "sha256:<config>" that CRI keeps of each image."""
    try:
        return None if name.startswith("sha256:") else Reference.parse(name)
    except StafettError:
        return None
