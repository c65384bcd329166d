"""The acts of the demo: pulls on each host in turn, and a holder frozen in the middle of the last one."""

from __future__ import annotations

import contextlib
import json
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from rich.console import Console
from rich.filesize import decimal
from rich.live import Live
from rich.table import Table

from stafett.cli.demo.host_pull import HostPull
from stafett.cli.demo.stage import HOSTS, LINK_BYTES_PER_SECOND, Stage, set_stage
from stafett.cli.local_cluster.cluster import Host
from stafett.cli.local_cluster.containerd import containerd_available
from stafett.cli.local_cluster.interruption import Interrupted, interrupted, interruptible, obey_interruption
from stafett.cli.local_cluster.processes import wait_until
from stafett.cli.store_choice import StoreChoice
from stafett.common.errors import StartupFailed

EXIT_FAILED = 1
EXIT_INTERRUPTED = 130
LOOK_SECONDS = 0.05
FREEZE_AT_SHARE = 0.3
ANNOUNCED_SECONDS = 10.0


@dataclass
class Story:
    """What has happened so far."""

    store: str
    image_bytes: int
    pulls: list[HostPull] = field(default_factory=list)
    failed: int = 0
    frozen: str = ""
    said: str = ""

    def document(self, upstream_bytes: int) -> dict[str, object]:
        """The last line of `--json`."""
        return {
            "store": self.store,
            "pulls": [
                {
                    "host": pull.host.name,
                    "seconds": round(pull.seconds, 2),
                    "bytes_local": pull.bytes_local,
                    "bytes_peer": pull.bytes_peer,
                    "bytes_upstream": pull.bytes_upstream,
                }
                for pull in self.pulls
            ],
            "upstream_bytes": upstream_bytes,
            "image_bytes": self.image_bytes,
            "failed_pulls": self.failed,
            "failover": {
                "frozen": self.frozen,
                "longest_gap_seconds": round(self.pulls[-1].gaps.longest_seconds, 2) if self.pulls else None,
            },
        }


def run_demo(store: StoreChoice, *, as_json: bool) -> int:
    """Play the demo; return 0 if every pull succeeded and every digest is right."""
    use_containerd = store is StoreChoice.CONTAINERD or (store is StoreChoice.AUTO and containerd_available())
    if use_containerd and not containerd_available():
        print("--store containerd needs root, containerd and ctr: try --store oci-layout", file=sys.stderr)
        return EXIT_FAILED
    console = Console(stderr=True)
    with interruptible():
        try:
            console.print("Starting a registry, Redis, two trackers and four hosts ...")
            with set_stage(use_containerd=use_containerd) as stage:
                story = Story("containerd" if use_containerd else "oci-layout", stage.image_bytes)
                _play(stage, story, console)
                upstream_bytes = stage.upstream_bytes()
        except (Interrupted, StartupFailed, OSError) as error:
            return _cut_short(error)
    _summarize(story, upstream_bytes, console)
    if as_json:
        print(json.dumps(story.document(upstream_bytes)))
    return EXIT_FAILED if story.failed else 0


def _cut_short(error: Exception) -> int:
    """Say why the demo ended early, if there is still a terminal to say it on; return the exit code."""
    with contextlib.suppress(OSError):
        if not interrupted():
            print(f"the demo could not go on: {error}", file=sys.stderr)
            return EXIT_FAILED
        print("interrupted; everything has been cleaned up", file=sys.stderr)
    return EXIT_INTERRUPTED


def _play(stage: Stage, story: Story, console: Console) -> None:
    rate = decimal(LINK_BYTES_PER_SECOND)
    story.said = f"{decimal(stage.image_bytes)} image, {stage.image.name}; every link is held to {rate}/s"
    last = stage.cluster.hosts[-1]
    with _screen(stage, story, console) as show:
        for host in stage.cluster.hosts:
            pull = HostPull(stage, host)
            story.pulls.append(pull)
            while pull.running:
                pull.look()
                if host is last and not story.frozen and pull.bytes_peer > FREEZE_AT_SHARE * stage.image_bytes:
                    story.frozen = _freeze_server(stage, host)
                    story.said = f"{story.frozen} is frozen in the middle of a blob"
                show()
                time.sleep(LOOK_SECONDS)
                obey_interruption()
            pull.look()
            if pull.error or not pull.verify():
                story.failed += 1
                pull.error = pull.error or "a digest is wrong"
            show()
            _wait_announced(stage, host)


def _freeze_server(stage: Stage, reader: Host) -> str:
    """Stop the node that sends the most right now, and say its name."""
    before = _sent_bytes(stage)
    wait_until(lambda: any(size > before.get(name, 0) for name, size in _sent_bytes(stage).items()), "a sending node")
    after = _sent_bytes(stage)
    others = [host for host in stage.cluster.hosts if host is not reader]
    busiest = max(others, key=lambda host: after.get(host.name, 0) - before.get(host.name, 0))
    if busiest.node is not None:
        busiest.node.signal(signal.SIGSTOP)
    return busiest.name


def _sent_bytes(stage: Stage) -> dict[str, int]:
    return {name: node.health.sent_bytes if node.health else 0 for name, node in stage.nodes().items()}


def _wait_announced(stage: Stage, host: Host) -> None:
    """Give the host's node a moment to announce what it has just pulled."""
    wanted = 2 + len(stage.image.blobs[stage.platform])
    with contextlib.suppress(StartupFailed):
        wait_until(lambda: stage.nodes()[host.name].blob_count >= wanted, "announcement", ANNOUNCED_SECONDS)


@contextlib.contextmanager
def _screen(stage: Stage, story: Story, console: Console) -> Iterator[Callable[[], None]]:
    """A live table on a terminal, a line for each ended pull elsewhere."""
    if console.is_terminal:
        with Live(_table(story), console=console, refresh_per_second=10) as live:
            yield lambda: live.update(_table(story))
        return
    console.print(story.said, soft_wrap=True)
    told: set[str] = set()

    def show() -> None:
        for pull in story.pulls:
            if not pull.running and pull.host.name not in told and pull.seconds:
                told.add(pull.host.name)
                console.print(_line(pull), soft_wrap=True)
        if story.frozen and "frozen" not in told:
            told.add("frozen")
            console.print(story.said, soft_wrap=True)

    yield show


def _line(pull: HostPull) -> str:
    outcome = pull.error or "every digest right"
    return (
        f"{pull.host.name} ({pull.host.zone}): {pull.seconds:.1f} s, {decimal(pull.bytes_peer)} from peers, "
        f"{decimal(pull.bytes_upstream)} from upstream, {outcome}"
    )


def _table(story: Story) -> Table:
    table = Table(title=story.said, title_justify="left", expand=True)
    for column in ("host", "zone", "progress", "same zone", "other zone", "upstream", "seconds", "state"):
        table.add_column(column)
    by_host = {pull.host.name: pull for pull in story.pulls}
    for name, zone in HOSTS:
        pull = by_host.get(name)
        state = "frozen" if name == story.frozen else ""
        if pull is None:
            table.add_row(name, zone, "", "", "", "", "", state or "waiting")
            continue
        done = min(1.0, (pull.bytes_peer + pull.bytes_local + pull.bytes_upstream) / story.image_bytes)
        bar = "█" * round(done * 24)
        state = state or pull.error or ("pulling" if pull.running else "all digests right")
        near = pull.by_source["peer_rack"] + pull.by_source["peer_zone"]
        sizes = (decimal(near), decimal(pull.bytes_peer - near), decimal(pull.bytes_upstream))
        table.add_row(name, zone, f"{bar:<24}", *sizes, f"{pull.seconds:.1f}" if pull.seconds else "", state)
    return table


def _summarize(story: Story, upstream_bytes: int, console: Console) -> None:
    copies = upstream_bytes / story.image_bytes
    gap = story.pulls[-1].gaps.longest_seconds
    console.print(f"{len(story.pulls)} hosts pulled {decimal(story.image_bytes)} each; failed pulls: {story.failed}")
    console.print(f"upstream served {copies:.2f} copies ({decimal(upstream_bytes)})")
    console.print(f"{story.frozen or 'nobody'} was frozen in mid-blob: longest gap {gap:.2f} s, no error at the client")
