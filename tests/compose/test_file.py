"""docker-compose.yml as docker-compose reads it, with all that it refers to; nothing is started."""

from __future__ import annotations

import re
import subprocess
import tomllib
from typing import Any

import pytest
import yaml

from tests.compose.engine import ROOT

pytestmark = [pytest.mark.compose, pytest.mark.needs_program("docker-compose")]

ONCE = {"sample", "configure"}


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    """All services of both profiles, variables filled in."""
    command = ["docker-compose", "--profile", "core", "--profile", "observability", "config"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = yaml.safe_load(done.stdout)["services"]
    return found


def test_every_service_belongs_to_one_profile(services: dict[str, Any]) -> None:
    by_profile: dict[str, set[str]] = {}
    for name, service in services.items():
        (profile,) = service["profiles"]
        by_profile.setdefault(profile, set()).add(name)
    assert by_profile["observability"] == {"jaeger", "prometheus", "grafana"}
    assert len(by_profile["core"]) == 19


def test_images_are_pinned_by_version(services: dict[str, Any]) -> None:
    for name, service in services.items():
        assert re.search(r":v?\d+\.\d+\.\d+", service["image"]), f"{name}: {service['image']}"


def test_ours_is_the_version_of_this_tree(services: dict[str, Any]) -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert services["tracker-1"]["image"] == f"stafett:{version}"


def test_ports_are_published_on_loopback_only(services: dict[str, Any]) -> None:
    published = [port for service in services.values() for port in service.get("ports", ())]
    assert len(published) == 5
    assert all(port.startswith("127.0.0.1:") for port in published), published


def test_whatever_keeps_running_has_a_health_check(services: dict[str, Any]) -> None:
    assert {name for name, service in services.items() if "healthcheck" not in service} == ONCE


def test_parts_of_stafett_are_not_root_and_write_nowhere(services: dict[str, Any]) -> None:
    parts = {name: service for name, service in services.items() if service["image"].startswith("stafett:")}
    assert len(parts) == 10
    for name, part in parts.items():
        assert part["read_only"], name
        assert part["cap_drop"] == ["ALL"], name
        assert ("user" in part) == (name == "configure"), name


def test_files_that_are_mounted_exist(services: dict[str, Any]) -> None:
    sources = {volume.partition(":")[0] for service in services.values() for volume in service.get("volumes", ())}
    missing = [source for source in sources if source.startswith("/") and not (ROOT / source).exists()]
    assert not missing
