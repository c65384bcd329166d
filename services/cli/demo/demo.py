"""The demo: five acts with one image and four hosts, in the last three of which something fails."""

from __future__ import annotations

import contextlib
import json
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console
from rich.filesize import decimal

from stafett.cli.demo.host_pull import HostPull
from stafett.cli.demo.kept import how_to_use
from stafett.cli.demo.screen import screen
from stafett.cli.demo.stage import IMAGE, LINK_BYTES_PER_SECOND, Stage, set_stage
from stafett.cli.demo.story import Act, Story
from stafett.cli.local_cluster.cluster import Host
from stafett.cli.local_cluster.containerd import containerd_available
from stafett.cli.local_cluster.interruption import Interrupted, interrupted, interruptible, obey_interruption
from stafett.cli.store_choice import StoreChoice
from stafett.common.errors import StartupFailed

EXIT_FAILED = 1
EXIT_INTERRUPTED = 130
LOOK_SECONDS = 0.05
FREEZE_AT_SHARE = 0.2
KILL_AT_SHARE = 0.6
BUSY_LOOKS = 6
"""Looks over which is told who serves the most."""


def run_demo(store: StoreChoice, *, as_json: bool, quick: bool, keep: bool) -> int:
    """Play the demo; return 0 if every pull succeeded and every digest is right."""
    use_containerd = store is StoreChoice.CONTAINERD or (store is StoreChoice.AUTO and containerd_available())
    if use_containerd and not containerd_available():
        print("--store containerd needs root, containerd and ctr: try --store oci-layout", file=sys.stderr)
        return EXIT_FAILED
    console = Console(stderr=True)
    with interruptible():
        try:
            started_at = time.monotonic()
            _say(console, "Starting a registry and four hosts ...")
            with set_stage(use_containerd=use_containerd, quick=quick) as stage:
                story = Story("containerd" if use_containerd else "oci-layout", stage.image_bytes)
                size, rate = decimal(stage.image_bytes), decimal(LINK_BYTES_PER_SECOND)
                _say(console, f"The image is {IMAGE}, {size}; every link is held to {rate}/s")
                with screen(story, console) as show:
                    Play(stage, story, show).all_acts()
                story.total_seconds = time.monotonic() - started_at
                _say(console, f"All five acts took {story.total_seconds:.0f} s.", *story.summary())
                if as_json:
                    print(json.dumps(story.document()), flush=True)
                if keep:
                    stage.start_upstream()
                    stage.wait_ready()
                    _say(console, *how_to_use(stage))
                    while not interrupted():
                        time.sleep(LOOK_SECONDS)
        except (Interrupted, StartupFailed, OSError) as error:
            return _cut_short(error)
    return EXIT_FAILED if story.failed else 0


class Play:
    """Plays the acts. `show` brings the screen up to date."""

    def __init__(self, stage: Stage, story: Story, show: Callable[[], None]) -> None:
        self._stage = stage
        self._story = story
        self._show = show
        self._read: dict[str, deque[int]] = {host.name: deque(maxlen=BUSY_LOOKS) for host in stage.hosts}

    def all_acts(self) -> None:
        """Play all, in their order."""
        stage, everybody, last = self._stage, self._stage.hosts, self._stage.hosts[-1]
        self._pull(self._begin("four hosts pull without Stafett, all at once"), everybody, plain=True)
        plain_bytes = stage.upstream_bytes()

        act = self._begin("the same with Stafett")
        self._remark(act, "Redis, two trackers, and a node and a gateway on each host are started")
        stage.forget(*everybody)
        stage.install()
        self._pull(act, everybody)

        act = self._begin(f"{last.name} starts anew; the node that serves it freezes, the next one is killed")
        stage.wait_ready()
        stage.forget(last)
        self._pull(act, [last], meanwhile=lambda: self._break_servers(act, act.pulls[0]))
        self._story.upstream_bytes = stage.upstream_bytes() - plain_bytes

        act = self._begin(f"upstream is off: {last.name} starts anew, and pulls by tag")
        self._mend_servers()
        stage.stop_upstream()
        stage.forget(last)
        self._pull(act, [last])

        act = self._begin(f"Redis loses all of its data: {last.name} starts anew, upstream answers again")
        stage.start_upstream()
        stage.wait_ready()
        stage.forget(last)
        stage.flush()
        self._pull(act, [last])
        self._story.upstream_bytes += stage.upstream_bytes()

    def _begin(self, title: str) -> Act:
        self._story.acts.append(act := Act(title))
        self._show()
        return act

    def _remark(self, act: Act, remark: str) -> None:
        act.remarks.append(remark)
        self._show()

    def _pull(
        self,
        act: Act,
        hosts: Sequence[Host],
        *,
        plain: bool = False,
        meanwhile: Callable[[], None] = lambda: None,
    ) -> None:
        act.pulls = [HostPull(self._stage, host, plain) for host in hosts]
        while not act.ended:
            for pull in act.pulls:
                pull.look()
            meanwhile()
            self._show()
            time.sleep(LOOK_SECONDS)
            obey_interruption()
        self._show()

    def _break_servers(self, act: Act, pull: HostPull) -> None:
        """Freeze, and later kill, whose node serves the most at that moment."""
        story, share = self._story, pull.bytes_peer / self._story.image_bytes
        self._look_at_nodes()
        if not story.frozen and share > FREEZE_AT_SHARE:
            story.frozen = self._hit(pull.host, signal.SIGSTOP)
            self._remark(act, f"{story.frozen}, which serves, is frozen in mid-layer")
        elif story.frozen and not story.killed and share > KILL_AT_SHARE:
            story.killed = self._hit(pull.host, signal.SIGKILL)
            self._remark(act, f"{story.killed}, which serves now, is killed in mid-layer")

    def _look_at_nodes(self) -> None:
        for host in self._stage.hosts:
            self._read[host.name].append(_bytes_read(host))

    def _hit(self, reader: Host, number: signal.Signals) -> str:
        others = [host for host in self._stage.hosts if host is not reader and host.name != self._story.frozen]
        busiest = max(others, key=lambda host: self._read[host.name][-1] - self._read[host.name][0])
        if busiest.node is not None:
            busiest.node.signal(number)
        return busiest.name

    def _mend_servers(self) -> None:
        for host in self._stage.hosts:
            if host.name == self._story.frozen and host.node is not None:
                host.node.signal(signal.SIGCONT)
            if host.name == self._story.killed:
                self._stage.start_node(host)
        self._stage.wait_ready()


def _bytes_read(host: Host) -> int:
    """What a host's node has read so far; a node reads what it serves."""
    try:
        text = Path(f"/proc/{host.node.popen.pid}/io").read_text() if host.node else ""
    except OSError:
        text = ""
    return int(dict(line.split(": ") for line in text.splitlines()).get("rchar", 0))


def _say(console: Console, *lines: str) -> None:
    """Print lines as they are, to be copied from a terminal of any width."""
    for line in lines:
        console.print(line, soft_wrap=True, highlight=False, markup=False)


def _cut_short(error: Exception) -> int:
    """Say why the demo ended early, if there is still a terminal to say it on; return the exit code."""
    with contextlib.suppress(OSError):
        if not interrupted():
            print(f"the demo could not go on: {error}", file=sys.stderr)
            return EXIT_FAILED
        print("interrupted; everything has been cleaned up", file=sys.stderr)
    return EXIT_INTERRUPTED
