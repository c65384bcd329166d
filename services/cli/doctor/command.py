"""`stafett doctor`: looks at everything, and says what is wrong and what to do."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from textwrap import indent

from rich.console import Console

from stafett.cli.configure.mirror_files import origins
from stafett.cli.doctor import cluster_checks, host_checks
from stafett.cli.doctor.containerd_checks import check_config, check_proxies
from stafett.cli.doctor.host_checks import Store
from stafett.cli.doctor.setup import Setup
from stafett.cli.doctor.tracker_checks import check_trackers
from stafett.cli.doctor.verdict import Level, Verdict, fail, ok
from stafett.common.errors import StartupFailed, Unavailable
from stafett.node.containerd_store import ContainerdStore
from stafett.node.layout_store import LayoutStore
from stafett.node.ports import ContentStore

_COLOURS = {Level.OK: "green", Level.WARN: "yellow", Level.FAIL: "red"}


def run_doctor(setup: Setup, *, as_json: bool) -> int:
    """Print all verdicts; return the exit code: 0, 1 with a warning, 2 with a failure."""
    verdicts = asyncio.run(examine(setup))
    worst = max(verdict.level for verdict in verdicts)
    if as_json:
        shown = [{**asdict(verdict), "level": verdict.level.name.lower()} for verdict in verdicts]
        print(json.dumps({"worst": worst.name.lower(), "verdicts": shown}))
        return int(worst)
    console = Console(highlight=False, soft_wrap=True)
    for verdict in verdicts:
        colour = _COLOURS[verdict.level]
        console.print(f"[{colour}]{verdict.level.name.lower():4s}[/] {verdict.check}: ", end="")
        console.print(verdict.said, markup=False)
        if verdict.remedy:
            console.print(indent(verdict.remedy, " " * 5), markup=False)
    return int(worst)


async def examine(setup: Setup) -> list[Verdict]:
    """Look at everything; what depends on something that fails is not looked at, so that it is not blamed, too."""
    verdicts = [ok("settings", setup.sources)]
    if setup.node.store == "containerd":
        verdicts += [*check_config(setup.distro), *host_checks.check_mirror_files(setup), *_proxies(setup)]
    store, said = await _look_into_store(setup)
    verdicts.append(said)
    if store is not None:
        verdicts += host_checks.check_content_root(setup, store)
        if setup.node.store == "containerd":
            verdicts += host_checks.check_images(setup, store)
    verdicts += [verdict async for verdict in cluster_checks.check_gateway(setup)]
    unreadable = list(host_checks.check_certificates(setup))
    return verdicts + (unreadable or await _examine_cluster(setup, store))


async def _examine_cluster(setup: Setup, store: Store | None) -> list[Verdict]:
    of_node = await cluster_checks.check_node(setup)
    of_trackers, nodes = await check_trackers(setup)
    verdicts = [of_node, *of_trackers]
    if nodes is None:
        return verdicts
    if of_node.level is Level.OK:
        verdicts.append(cluster_checks.check_lease(setup, nodes, store))
    to_peers = [verdict async for verdict in cluster_checks.check_peers(setup, nodes)]
    verdicts += to_peers
    if store is not None and all(verdict.level is Level.OK for verdict in to_peers):
        verdicts += [verdict async for verdict in cluster_checks.check_read(setup, store)]
    return verdicts


def _proxies(setup: Setup) -> Iterator[Verdict]:
    try:
        urls = {origin.gateway.mirror_url for origin in origins(setup.distro.hosts_dir)}
    except (StartupFailed, OSError):
        return  # said among the mirror files
    yield from check_proxies(setup.node.containerd_socket, sorted(urls))


async def _look_into_store(setup: Setup) -> tuple[Store | None, Verdict]:
    with ThreadPoolExecutor(1) as disk:
        store = _open(setup, disk)
        try:
            async with asyncio.timeout(cluster_checks.CALL_SECONDS):
                found = Store(await store.list_blobs(), [image.name for image in await store.list_images()])
        except (Unavailable, TimeoutError, OSError) as error:
            remedy = "start containerd; run the doctor as root; see STAFETT_NODE_CONTAINERD_SOCKET"
            return None, fail("store", f"{setup.node.containerd_socket} does not answer: {error}", remedy)
        finally:
            await store.close()
    return found, ok("store", f"{len(found.blobs)} blobs, {len(found.images)} image names")


def _open(setup: Setup, disk: ThreadPoolExecutor) -> ContentStore:
    if setup.node.store == "oci-layout" and setup.node.content_root:
        return LayoutStore(setup.node.content_root, disk)
    return ContainerdStore(setup.node.containerd_socket, setup.node.namespaces, setup.node.content_root, disk)
