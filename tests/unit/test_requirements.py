"""The lock files say the same, and the image's is complete."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def pins(name: str) -> dict[str, list[str]]:
    """Pinned versions with their hashes."""
    found: dict[str, list[str]] = {}
    for line in (ROOT / "requirements" / name).read_text().splitlines():
        if pinned := re.match(r"([\w.-]+)==([^ ;]+)", line):
            found[pinned[0]] = []
        elif hashed := re.match(r"    --hash=(sha256:[0-9a-f]{64})", line):
            found[next(reversed(found))].append(hashed[1])
    return found


@pytest.mark.parametrize("name", ["run.txt", "build.txt"])
def test_what_the_image_gets_is_what_is_tested(name: str) -> None:
    tested, image = pins("dev.txt"), pins(name)
    differing = {pin for pin, hashes in image.items() if not {*hashes} & {*tested.get(pin, ())}}
    assert not differing, "run make lock-image"


def test_every_dependency_is_pinned_for_the_image() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    for name, wanted in (
        ("run.txt", project["project"]["dependencies"]),
        ("build.txt", project["build-system"]["requires"]),
    ):
        pinned = {pin.partition("==")[0] for pin in pins(name)}
        assert {re.split("[<>=~!;\\[ ]", need)[0] for need in wanted} <= pinned, "run make lock-image"
