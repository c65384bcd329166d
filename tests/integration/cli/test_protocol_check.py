"""The check that refuses wire-breaking changes of the protocol, run in small repositories of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PROTO = "protos/stafett/api/v1/thing.proto"
FIRST = 'syntax = "proto3";\n\npackage stafett.api.v1;\n\nmessage Thing {\n  string name = 1;\n}\n'
GROWN = FIRST.replace("}\n", "  string colour = 2;\n}\n")
BROKEN = FIRST.replace("string name = 1", "int64 name = 1")

pytestmark = pytest.mark.needs_program("git")


def test_a_field_that_changes_its_type_is_refused(tmp_path: Path) -> None:
    _repository(tmp_path)
    _commit(tmp_path, FIRST)
    _commit(tmp_path, BROKEN)
    done = _check(tmp_path)
    assert done.returncode != 0
    assert "thing.proto" in done.stdout


def test_a_new_field_passes(tmp_path: Path) -> None:
    _repository(tmp_path)
    _commit(tmp_path, FIRST)
    _commit(tmp_path, GROWN)
    done = _check(tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_breaking_change_is_refused_before_it_is_committed(tmp_path: Path) -> None:
    _repository(tmp_path)
    _commit(tmp_path, FIRST)
    (tmp_path / PROTO).write_text(BROKEN)
    assert _check(tmp_path).returncode != 0


def test_a_history_of_one_commit_has_nothing_to_compare(tmp_path: Path) -> None:
    _repository(tmp_path)
    _commit(tmp_path, FIRST)
    done = _check(tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "no earlier protocol" in done.stdout


def test_a_tree_without_history_has_nothing_to_compare(tmp_path: Path) -> None:
    _copy(tmp_path)
    (tmp_path / PROTO).write_text(FIRST)
    done = _check(tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "no earlier protocol" in done.stdout


def _copy(root: Path) -> None:
    (root / PROTO).parent.mkdir(parents=True)
    shutil.copy(ROOT / "protos" / "check-breaking.sh", root / "protos")
    shutil.copy(ROOT / "buf.yaml", root)


def _repository(root: Path) -> None:
    _copy(root)
    _git(root, "init", "--quiet")


def _commit(root: Path, proto: str) -> None:
    (root / PROTO).write_text(proto)
    _git(root, "add", "--all")
    _git(root, "-c", "user.name=t", "-c", "user.email=t@example.com", "commit", "--quiet", "--message", "change")


def _git(root: Path, *arguments: str) -> None:
    subprocess.run(["git", *arguments], cwd=root, env=_environment(), check=True, timeout=30)


def _check(root: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [root / "protos" / "check-breaking.sh"],
        env=_environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def _environment() -> dict[str, str]:
    """Ours, with the programs of this Python environment, and without a repository that a git hook may have set."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    return {**kept, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "GIT_CONFIG_GLOBAL": os.devnull}
