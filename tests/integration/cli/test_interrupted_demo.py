"""A demo that is stopped leaves no process, mount, namespace or file, however and whenever it is stopped."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import signal
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from stafett.cli.local_cluster.cluster import LocalCluster
from stafett.cli.local_cluster.interruption import Interrupted, interruptible
from stafett.cli.local_cluster.processes import Processes, wait_until

DEMO = (sys.executable, "-m", "stafett", "demo", "--quick", "--store")
SLEEP = ("sleep", "600")
EXIT_INTERRUPTED = 130


def writers(directory: Path) -> list[int]:
    """Pids of all processes that log below a directory, whoever their parent is now."""
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            with contextlib.suppress(OSError):
                if (process / "fd" / "1").readlink().is_relative_to(directory):
                    found.append(int(process.name))
    return found


def end_writers(directory: Path) -> list[int]:
    """End what should have ended, so that a failed test leaves nothing either; tell what it was."""
    left = writers(directory)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    return left


def descendants(pid: int) -> list[int]:
    """Pids of all that a process has started, directly or not."""
    try:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
        children = [int(child) for task in tasks for child in (task / "children").read_text().split()]
    except OSError:
        return []
    return children + [grandchild for child in children for grandchild in descendants(child)]


@dataclass
class Demo:
    """A running demo: where it keeps its files, and what it has said."""

    process: subprocess.Popen[bytes]
    directory: Path
    log: Path

    @property
    def said(self) -> str:
        return self.log.read_text() if self.log.exists() else ""

    def pulls(self, act: str) -> bool:
        """Tell whether it is in that act, and a host is in the middle of its pull."""
        return (not act or f"{act} " in self.said) and any(
            path.is_file() and path.stat().st_size > 100
            for path in self.directory.glob("stafett-*/host-*/**/ingest/**/*")
        )

    def reaches(self, moment: Moment) -> list[int]:
        """Wait for a moment; return what runs then."""
        wait_until(lambda: moment(self) or self.process.poll() is not None, moment.__name__, 90)
        assert self.process.poll() is None, self.said
        return descendants(self.process.pid)

    def is_stopped(self, children: list[int]) -> None:
        """Wait for its end, and see that nothing is left."""
        assert self.process.wait(60) == EXIT_INTERRUPTED
        assert "Traceback" not in self.said
        assert alive(children) == []
        assert writers(self.directory) == []
        assert str(self.directory) not in Path("/proc/self/mounts").read_text()
        assert list(self.directory.iterdir()) == []


Moment = Callable[[Demo], bool]


def is_laid_out(demo: Demo) -> bool:
    return bool(list(demo.directory.glob("stafett-*/upstream")))


def is_starting(demo: Demo) -> bool:
    return bool(list(demo.directory.glob("stafett-*/logs/gateway-*")))


def has_ingests(demo: Demo) -> bool:
    return demo.pulls("")


def pulls_without_stafett(demo: Demo) -> bool:
    return demo.pulls("①")


def relays(demo: Demo) -> bool:
    return is_starting(demo) and demo.pulls("②")


def has_a_frozen_node(demo: Demo) -> bool:
    return "is frozen in mid-layer" in demo.said


def pulls_without_upstream(demo: Demo) -> bool:
    return demo.pulls("④")


def pulls_after_the_flush(demo: Demo) -> bool:
    return demo.pulls("⑤")


@contextlib.contextmanager
def running_demo(directory: Path, store: str, **options: object) -> Iterator[Demo]:
    """A demo that inherits SIGINT as ignored, as the background job of a script does, and SIGHUP as nohup does not."""
    temporary, log = directory / store, directory / f"{store}.log"
    temporary.mkdir()
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGHUP)}
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    try:
        with log.open("wb") as said:
            streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": said}
            environment = {**os.environ, "TMPDIR": str(temporary)}
            command = [*DEMO, store]
            process = subprocess.Popen(command, env=environment, **{**streams, **options})  # type: ignore[call-overload]
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    try:
        yield Demo(process, temporary, log)
    finally:
        process.kill()
        process.wait()
        end_writers(temporary)


def alive(pids: list[int]) -> list[int]:
    return [pid for pid in pids if Path(f"/proc/{pid}").exists()]


def namespaces(pid: int | str) -> set[str]:
    with contextlib.suppress(OSError):  # it may have ended
        return {str(link.readlink()) for link in Path(f"/proc/{pid}/ns").iterdir()}
    return set()


REAL = (pytest.mark.needs_root, pytest.mark.needs_program("containerd"))


@pytest.mark.parametrize(
    ("store", "number", "moment"),
    [
        ("oci-layout", signal.SIGHUP, is_laid_out),
        ("oci-layout", signal.SIGINT, pulls_without_stafett),
        pytest.param("containerd", signal.SIGINT, pulls_without_stafett, marks=REAL),
        ("oci-layout", signal.SIGTERM, relays),
        pytest.param("containerd", signal.SIGINT, relays, marks=REAL),
        ("oci-layout", signal.SIGINT, has_a_frozen_node),
        pytest.param("containerd", signal.SIGTERM, has_a_frozen_node, marks=REAL),
        ("oci-layout", signal.SIGINT, pulls_without_upstream),
        pytest.param("containerd", signal.SIGINT, pulls_after_the_flush, marks=REAL),
    ],
)
def test_a_stopped_demo_leaves_nothing(short_path: Path, store: str, number: signal.Signals, moment: Moment) -> None:
    """Also when the user is impatient and says it twice."""
    with running_demo(short_path, store) as demo:
        children = demo.reaches(moment)
        assert set().union(*map(namespaces, children)) <= namespaces("self"), "none is made, so none can be left"
        demo.process.send_signal(number)
        time.sleep(0.1)
        demo.process.send_signal(number)
        demo.is_stopped(children)


def test_a_killed_demo_leaves_nothing(short_path: Path) -> None:
    with running_demo(short_path, "oci-layout") as demo:
        children = demo.reaches(is_starting)
        demo.process.kill()
        wait_until(lambda: not alive(children), "the end of all processes")
        assert writers(demo.directory) == []
        assert list(demo.directory.iterdir()) == []


def test_a_demo_whose_terminal_is_closed_leaves_nothing(short_path: Path) -> None:
    screen, terminal = pty.openpty()
    drain = threading.Thread(target=_read_until_stopped, args=(screen, stop := threading.Event()))

    def own_terminal() -> None:
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    streams = dict.fromkeys(("stdin", "stdout", "stderr"), terminal)
    with running_demo(short_path, "oci-layout", start_new_session=True, preexec_fn=own_terminal, **streams) as demo:
        os.close(terminal)
        drain.start()
        try:
            children = demo.reaches(has_ingests)
        finally:
            stop.set()
            drain.join()
            os.close(screen)
        demo.is_stopped(children)


def _read_until_stopped(screen: int, stop: threading.Event) -> None:
    """What the demo draws has to go somewhere, or it would wait for its terminal."""
    os.set_blocking(screen, False)
    while not stop.wait(0.02):
        with contextlib.suppress(OSError):
            os.read(screen, 65536)


def test_a_signal_between_starting_a_process_and_remembering_it_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[int] = []

    class Interrupting(subprocess.Popen[bytes]):
        def __init__(self, *arguments: object, **options: object) -> None:
            super().__init__(*arguments, **options)  # type: ignore[call-overload]
            started.append(self.pid)
            os.kill(os.getpid(), signal.SIGTERM)

    with interruptible():
        monkeypatch.setattr(subprocess, "Popen", Interrupting)
        with pytest.raises(Interrupted), Processes(tmp_path) as processes:
            processes.start("sleep", SLEEP, ready=lambda: False)
    assert started
    assert end_writers(tmp_path) == []
    assert alive(started) == []


def test_a_signal_does_not_cut_the_cleaning_up_short(tmp_path: Path) -> None:
    directory = tmp_path / "cluster"
    with interruptible(), LocalCluster(directory) as cluster:
        cluster.processes.start("first", SLEEP)
        second = cluster.processes.start("second", SLEEP)
        wait_for_second = second.wait

        def wait(timeout_seconds: float = 10.0) -> int:
            os.kill(os.getpid(), signal.SIGHUP)
            return wait_for_second(timeout_seconds)

        second.wait = wait  # type: ignore[method-assign]
    assert end_writers(directory) == []
    assert not directory.exists()
