"""What this machine can test, and a report of what it could not."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

# How long an example takes says nothing on shared cores.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

HINT = "make deps-e2e deps-compose installs what is missing (Debian packages); namespaces and containerds need root"


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A directory whose path leaves room for sockets below it."""
    directory = Path(tempfile.mkdtemp(prefix="t-", dir="/tmp"))
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs root or a program that is not here."""
    for item in items:
        if item.get_closest_marker("needs_root") and os.geteuid() != 0:
            item.add_marker(pytest.mark.skip(reason="needs root"))
        for marker in item.iter_markers("needs_program"):
            program = marker.args[0]
            if shutil.which(program) is None:
                item.add_marker(pytest.mark.skip(reason=f"needs {program}"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say what to do about skipped tests."""
    if terminalreporter.stats.get("skipped"):
        terminalreporter.write_line(HINT)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Where skipping is forbidden, a skipped test is a failure."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if os.environ.get("STAFETT_REQUIRE_ALL") == "1" and reporter and reporter.stats.get("skipped"):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
