"""A demo that is stopped leaves no process and no directory, however and whenever it is stopped."""

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
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from stafett.cli.local_cluster.cluster import LocalCluster
from stafett.cli.local_cluster.interruption import Interrupted, interruptible
from stafett.cli.local_cluster.processes import Processes, wait_until

DEMO = (sys.executable, "-m", "stafett", "demo", "--store", "oci-layout")
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


def is_laid_out(demo: Path) -> bool:
    return bool(list(demo.glob("stafett-*/upstream")))


def is_starting(demo: Path) -> bool:
    return bool(list(demo.glob("stafett-*/logs/gateway-*")))


def is_pulling(demo: Path) -> bool:
    """The hosts are in the middle of their first pull, without Stafett."""
    return any(path.is_file() and path.stat().st_size for path in demo.glob("stafett-*/host-2/layout/ingest/**/*"))


def is_relaying(demo: Path) -> bool:
    """They are in the middle of the second one, with it."""
    return is_starting(demo) and is_pulling(demo)


@contextlib.contextmanager
def running_demo(directory: Path, **options: object) -> Iterator[subprocess.Popen[bytes]]:
    """A demo that inherits SIGINT as ignored, as the background job of a script does, and SIGHUP as nohup does not."""
    environment: Mapping[str, str] = {**os.environ, "TMPDIR": str(directory)}
    quiet: dict[str, object] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGHUP)}
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    try:
        demo = subprocess.Popen(DEMO, env=environment, **{**quiet, **options})  # type: ignore[call-overload]
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    try:
        yield demo
    finally:
        demo.kill()
        demo.wait()
        end_writers(directory)


def reaches(demo: subprocess.Popen[bytes], moment: Callable[[Path], bool], directory: Path) -> list[int]:
    """Wait for a moment of the demo; return what runs then."""
    wait_until(lambda: moment(directory) or demo.poll() is not None, moment.__name__, 60)
    assert demo.poll() is None
    return descendants(demo.pid)


def alive(pids: list[int]) -> list[int]:
    return [pid for pid in pids if Path(f"/proc/{pid}").exists()]


@pytest.mark.parametrize(
    ("number", "moment"),
    [
        (signal.SIGHUP, is_laid_out),
        (signal.SIGINT, is_pulling),
        (signal.SIGTERM, is_starting),
        (signal.SIGINT, is_relaying),
    ],
)
def test_a_stopped_demo_leaves_nothing(tmp_path: Path, number: signal.Signals, moment: Callable[[Path], bool]) -> None:
    """Also when the user is impatient and says it twice."""
    with running_demo(tmp_path) as demo:
        children = reaches(demo, moment, tmp_path)
        demo.send_signal(number)
        time.sleep(0.1)
        demo.send_signal(number)
        assert demo.wait(60) == EXIT_INTERRUPTED
        assert alive(children) == []
        assert writers(tmp_path) == []
        assert list(tmp_path.iterdir()) == []


def test_a_killed_demo_leaves_nothing(tmp_path: Path) -> None:
    with running_demo(tmp_path) as demo:
        children = reaches(demo, is_starting, tmp_path)
        demo.kill()
        wait_until(lambda: not alive(children), "the end of all processes")
        assert writers(tmp_path) == []
        assert list(tmp_path.iterdir()) == []


def test_a_demo_whose_terminal_is_closed_leaves_nothing(tmp_path: Path) -> None:
    screen, terminal = pty.openpty()
    drain = threading.Thread(target=_read_until_stopped, args=(screen, stop := threading.Event()))

    def own_terminal() -> None:
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    streams = dict.fromkeys(("stdin", "stdout", "stderr"), terminal)
    with running_demo(tmp_path, start_new_session=True, preexec_fn=own_terminal, **streams) as demo:
        os.close(terminal)
        drain.start()
        try:
            children = reaches(demo, is_pulling, tmp_path)
        finally:
            stop.set()
            drain.join()
            os.close(screen)
        assert demo.wait(60) == EXIT_INTERRUPTED
        assert alive(children) == []
        assert list(tmp_path.iterdir()) == []


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
        stop_second = second.stop

        def stop(timeout_seconds: float = 10.0) -> int:
            os.kill(os.getpid(), signal.SIGHUP)
            return stop_second(timeout_seconds)

        second.stop = stop  # type: ignore[method-assign]
    assert end_writers(directory) == []
    assert not directory.exists()
