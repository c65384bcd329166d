"""What the documentation points to is there: files, tests, make targets, commands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from stafett.cli.app import app

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").rglob("*.md")])
BY_NAME = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


@BY_NAME
def test_links_lead_somewhere(page: Path) -> None:
    links = [link.partition("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text())]
    assert [link for link in links if link and "://" not in link and not (page.parent / link).exists()] == []


@BY_NAME
def test_tests_that_are_named_exist(page: Path) -> None:
    for path, name in re.findall(r"`(?:tests/)?([\w/]+/test_\w+\.py)(?:::(\w+))?`", page.read_text()):
        source = ROOT / "tests" / path
        assert source.exists(), path
        assert not name or f"def {name}(" in source.read_text(), f"{path}::{name}"


@BY_NAME
def test_make_targets_that_are_named_exist(page: Path) -> None:
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"(?:^|`)make ([a-z0-9-]+)", page.read_text(), re.MULTILINE)) <= targets


def test_the_readme_is_short_and_every_command_in_it_is_one() -> None:
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 150
    commands = set(re.findall(r"^(?:sudo -E )?stafett ([a-z]+)", text, re.MULTILINE))
    assert commands
    for command in commands:
        assert CliRunner().invoke(app, [command, "--help"]).exit_code in (0, 2), command
