"""The units for hosts without Kubernetes: systemd takes them, they are shut in, and their settings are real ones."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from stafett.common.settings import load
from tests.deploy.rendering import REPOSITORY
from tests.deploy.test_settings import MODELS

FOLDER = REPOSITORY / "deploy" / "systemd"
EXPOSURE_MAX = 20
"""In tenths of systemd's points: 100 is a service that may do everything, 20 ends what it calls OK."""


@pytest.fixture
def unit(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A part's unit, with a command that is there."""
    text = (FOLDER / f"stafett-{request.param}.service").read_text()
    assert f"\nExecStart=/opt/stafett/bin/stafett {request.param}\n" in text
    path = tmp_path / f"stafett-{request.param}.service"
    path.write_text(text.replace("/opt/stafett/bin/stafett", sys.executable))
    return path


@pytest.mark.needs_program("systemd-analyze")
@pytest.mark.parametrize("unit", MODELS, indirect=True)
def test_systemd_takes_the_unit_and_finds_it_shut_in(unit: Path) -> None:
    for command in (["verify"], ["security", "--offline=true", f"--threshold={EXPOSURE_MAX}"]):
        done = subprocess.run(["systemd-analyze", *command, str(unit)], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        assert command != ["verify"] or not done.stderr


@pytest.mark.needs_program("systemd-analyze")
@pytest.mark.parametrize("unit", ["node"], indirect=True)
def test_a_mistake_in_a_unit_is_found(unit: Path) -> None:
    unit.write_text(unit.read_text().replace("[Service]", "[Service]\nRestrt=always"))
    assert "Restrt" in subprocess.run(["systemd-analyze", "verify", str(unit)], capture_output=True, text=True).stderr


@pytest.mark.parametrize("part", MODELS)
def test_the_part_understands_its_environment_file(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("STAFETT_")]:
        monkeypatch.delenv(name)
    lines = (FOLDER / f"{part}.env").read_text().splitlines()
    settings = {found[1]: found[2] for line in lines if (found := re.fullmatch(r"#?(STAFETT_\w+)=(.+)", line))}
    assert settings
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    loaded = load(MODELS[part], [], f"stafett {part}")
    assert loaded.tls is not None
    unit = (FOLDER / f"stafett-{part}.service").read_text()
    assert f"\nEnvironmentFile=/etc/stafett/{part}.env\n" in unit


def test_a_unit_waits_for_the_drain() -> None:
    for part, grace in (("node", "drain_grace_seconds"), ("gateway", "stop_grace_seconds")):
        unit = (FOLDER / f"stafett-{part}.service").read_text()
        stop = re.search(r"^TimeoutStopSec=(\d+)$", unit, re.MULTILINE)
        assert stop
        assert int(stop[1]) > MODELS[part].model_fields[grace].default
