"""The image and the cluster of docker-compose.yml, run for real by an engine of the test's own."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import pytest

from stafett.cli.local_cluster.processes import wait_until
from tests.compose.engine import DOCKER, ROOT, Engine

pytestmark = [
    pytest.mark.compose,
    pytest.mark.needs_root,
    pytest.mark.needs_program("dockerd"),
    pytest.mark.needs_program("docker-compose"),
    pytest.mark.needs_program("debootstrap"),
    pytest.mark.timeout(900),
]

SECONDS = 90.0
WALK = ("python3", "deploy/compose/walk.py")


@pytest.fixture(scope="module")
def walked(engine: Engine) -> Iterator[str]:
    """What the walk prints; its cluster runs until the tests are over."""
    try:
        engine.run("docker-compose", "up", "--detach", "jaeger")
        yield engine.run(*WALK).stdout
    finally:
        engine.run("docker-compose", "down", "--volumes", "--timeout", "1", check=False)


def test_the_image_says_its_size_and_what_it_is(built: tuple[Engine, str]) -> None:
    engine, printed = built
    assert re.search(r"^stafett:\S+: \d+ MB$", printed, re.MULTILINE), printed
    config = inspect(engine, image_name(engine))["Config"]
    assert config["User"] == "65532:65532"
    assert config["Entrypoint"] == ["stafett"]
    assert config["Healthcheck"]["Test"] == ["CMD", "stafett", "healthy"]
    assert config["Labels"]["org.opencontainers.image.version"] in image_name(engine)
    assert re.fullmatch("[0-9a-f]{40}", config["Labels"]["org.opencontainers.image.revision"])


def test_the_image_has_what_is_pinned_and_nothing_of_the_build(engine: Engine) -> None:
    names = "from importlib.metadata import distributions as d; print(*(x.name + '==' + x.version for x in d()))"
    pinned = re.findall(r"^([\w.-]+==[^ ;]+)", (ROOT / "requirements/run.txt").read_text(), re.MULTILINE)
    installed = in_image(engine, "python", "-c", names).lower().replace("_", "-").split()
    assert set(installed) <= {*pinned, image_name(engine).replace(":", "==")}
    assert len(installed) > 30
    assert not in_image(engine, "find", "/src", "/tmp/wheel", "/opt/build", "/run/secrets", "/etc/pip.conf")
    assert not in_image(engine, "sh", "-c", "command -v gcc cc pip")
    layers = engine.run(DOCKER, "history", "--no-trunc", image_name(engine)).stdout
    assert "ca_bundle" not in layers


def test_the_image_runs_with_nothing_to_write_to_and_no_rights(engine: Engine) -> None:
    options = ("--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges", "--network=none")
    version = engine.run(DOCKER, "run", "--rm", *options, image_name(engine), "version").stdout.strip()
    assert image_name(engine) == f"stafett:{version}"


def test_the_cluster_keeps_its_promises(walked: str) -> None:
    assert "none from upstream" in walked
    assert "the pull went on from the other host" in walked
    assert re.search("http://127.0.0.1:16686/trace/[0-9a-f]{32}", walked)


def test_the_walk_notices_hosts_that_get_nothing_from_peers(engine: Engine, walked: str) -> None:
    try:
        done = engine.run(*WALK, check=False, environment={"DENIED_IMAGES": "*"})
    finally:
        engine.run("docker-compose", "up", "--detach")
    assert done.returncode == 1, done.stdout
    assert "upstream was asked for blobs again" in done.stderr


def test_a_replica_of_redis_takes_over(engine: Engine, walked: str) -> None:
    engine.run("docker-compose", "kill", "redis-1")
    master = ("exec", "-T", "sentinel-1", "redis-cli", "-p", "26379", "sentinel", "get-master-addr-by-name", "stafett")
    wait_until(lambda: ".12\n" in engine.run("docker-compose", *master).stdout, "redis-2 is the master", SECONDS)
    wait_until(lambda: not nodes(engine)["stale"], "the trackers use it", SECONDS)
    wait_until(lambda: ready(engine) == ["host-1", "host-2", "host-3"], "all hosts are ready there", SECONDS)
    engine.run("docker-compose", "up", "--detach", "redis-1")
    info = ("exec", "-T", "redis-1", "redis-cli", "info", "replication")
    wait_until(
        lambda: "master_link_status:up" in engine.run("docker-compose", *info).stdout, "redis-1 follows it", SECONDS
    )


def test_a_sentinel_starts_again(engine: Engine, walked: str) -> None:
    engine.run("docker-compose", "restart", "sentinel-3")
    known = ("exec", "-T", "sentinel-3", "redis-cli", "-p", "26379", "sentinel", "sentinels", "stafett")
    wait_until(
        lambda: engine.run("docker-compose", *known, check=False).stdout.count("runid") == 2,
        "it knows the two others",
        SECONDS,
    )


def test_prometheus_reaches_every_part(engine: Engine, walked: str) -> None:
    engine.run("docker-compose", "up", "--detach", "prometheus")
    wait_until(
        lambda: ask_prometheus(engine, "count(up{job=~'stafett-.*'} == 1)") == ["8"], "8 targets are up", SECONDS
    )


def test_every_part_ends_by_itself_when_told_to(engine: Engine, walked: str) -> None:
    parts = [f"{part}-{number}" for part in ("gateway", "node") for number in (1, 2, 3)] + ["tracker-1", "tracker-2"]
    containers = engine.run("docker-compose", "ps", "-q", *parts).stdout.split()
    assert len(containers) == len(parts)
    engine.run("docker-compose", "stop", "--timeout", "40", *parts)
    assert [inspect(engine, container)["State"]["ExitCode"] for container in containers] == [0] * len(parts)


def image_name(engine: Engine) -> str:
    version = re.search(r"^STAFETT_VERSION=(\S+)$", (ROOT / ".env").read_text(), re.MULTILINE)
    assert version is not None
    return f"stafett:{version[1]}"


def in_image(engine: Engine, *command: str) -> str:
    """What a program of the image prints."""
    options = ("--rm", "--user=0", f"--entrypoint={command[0]}")
    return engine.run(DOCKER, "run", *options, image_name(engine), *command[1:], check=False).stdout


def inspect(engine: Engine, name: str) -> dict[str, Any]:
    found: list[dict[str, Any]] = json.loads(engine.run(DOCKER, "inspect", name).stdout)
    return found[0]


def nodes(engine: Engine) -> dict[str, Any]:
    listed = engine.run("docker-compose", "exec", "-T", "tracker-1", "stafett", "nodes", "--json")
    found: dict[str, Any] = json.loads(listed.stdout)
    return found


def ready(engine: Engine) -> list[str]:
    return sorted(node["id"] for node in nodes(engine)["nodes"] if node["state"] == "ready")


def ask_prometheus(engine: Engine, query: str) -> list[str]:
    """Values of an instant query."""
    url = f"http://127.0.0.1:9090/api/v1/query?query={quote(query)}"
    answer = engine.run("docker-compose", "exec", "-T", "prometheus", "wget", "-q", "-O", "-", url, check=False).stdout
    return [series["value"][1] for series in json.loads(answer or '{"data": {"result": []}}')["data"]["result"]]
