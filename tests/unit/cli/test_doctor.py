"""What the doctor says of things that a real installation on one machine cannot show."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from stafett.cli.configure.changing import carry_out
from stafett.cli.configure.distros import DistroName, distro_of
from stafett.cli.configure.hosts_toml import DEFAULT, Gateway, Registry
from stafett.cli.configure.mirror_files import changes_for, goes_through
from stafett.cli.doctor.containerd_checks import spared
from stafett.cli.doctor.host_checks import Store, check_images, check_mirror_files
from stafett.cli.doctor.running import told
from stafett.cli.doctor.setup import Setup, read_setup
from stafett.cli.doctor.tracker_checks import Answer, judge
from stafett.cli.doctor.verdict import Level, Verdict


@pytest.mark.parametrize(
    ("seconds", "level"),
    [(0.0, Level.OK), (1.0, Level.OK), (30.0, Level.FAIL), (-30.0, Level.FAIL), (None, None)],
)
def test_a_clock_that_is_off_is_named_and_one_that_is_not_told_is_not(
    seconds: float | None, level: Level | None
) -> None:
    verdicts = judge([Answer("t", [], stale=False, mass_guard=False, skew_seconds=seconds)])
    assert [verdict.level for verdict in verdicts if verdict.check == "clock"] == ([] if level is None else [level])


def test_only_the_replica_that_is_stale_is_named() -> None:
    answers = [Answer(name, [], stale=name == "b", mass_guard=False, skew_seconds=0.0) for name in "ab"]
    redis, clock = judge(answers)
    assert (redis.check, redis.level) == ("redis", Level.FAIL)
    assert redis.said.startswith("b cannot reach Redis")
    assert clock.level is Level.OK


@pytest.mark.parametrize(
    ("url", "no_proxy", "expected"),
    [
        ("http://127.0.0.1:7462", "", True),
        ("http://localhost:7462", "", True),
        ("http://[::1]:7462", "", True),
        ("http://10.1.2.3:7462", "", False),
        ("http://10.1.2.3:7462", "10.0.0.0/8", True),
        ("http://10.1.2.3:7462", "192.168.0.0/16, 10.1.2.3", True),
        ("http://10.1.2.3:7462", "10.1.2.3:7462", True),
        ("http://10.1.2.3:7462", "10.1.2.3:80", False),
        ("http://10.1.2.3:7462", "*", True),
        ("http://[fd00::1]:7462", "fd00::/8", True),
        ("http://[fd00::1]:7462", "[fd00::1]:7462", True),
        ("http://mirror.corp:7462", "corp", True),
        ("http://mirror.corp:7462", ".corp", True),
        ("http://mirror.corp:7462", "*.corp", True),
        ("http://corp:7462", ".corp", False),
        ("http://mirror.corp:7462", "orp", False),
        ("http://mirror.corp:7462", "10.0.0.0/8,,other.corp", False),
    ],
)
def test_no_proxy_means_what_it_means_to_containerd(url: str, no_proxy: str, *, expected: bool) -> None:
    assert spared(url, no_proxy) is expected


@pytest.fixture
def setup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Setup:
    monkeypatch.setenv("STAFETT_NODE_NODE_ID", "h1")
    monkeypatch.setenv("STAFETT_GATEWAY_NODE_ID", "h1")
    return read_setup(distro_of(DistroName.CONTAINERD, tmp_path))


def configure(root: Path, *registries: Registry, gateway: Gateway | None = None) -> None:
    carry_out(root, changes_for(root, registries, gateway or Gateway()))


def wrong(verdicts: list[Verdict]) -> dict[str, Level]:
    return {verdict.check: verdict.level for verdict in verdicts if verdict.level is not Level.OK}


@pytest.mark.parametrize("mirror", ["http://127.0.0.1:7462", "http://localhost:7462", "http://[::1]:7462"])
def test_the_gateway_may_be_called_by_any_name_of_loopback(setup: Setup, mirror: str) -> None:
    root = setup.distro.hosts_dir
    configure(root, Registry("docker.io"), Registry(DEFAULT), gateway=Gateway(mirror, mirror.replace("62", "63")))
    assert wrong(list(check_mirror_files(setup))) == {}


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('[host."https://registry-1.docker.io"]\ncapabilities = ["pull", "resolve", "push"]\n', ""),
        ('["pull"]', '["pull", "resolve"]'),
        ("7462", "7464"),
        ('server = "http://127.0.0.1:7463"\n', ""),
        ("[host.", "[[["),
    ],
)
def test_every_difference_from_what_configure_writes_is_found(setup: Setup, old: str, new: str) -> None:
    configure(setup.distro.hosts_dir, Registry("docker.io"))
    path = setup.distro.hosts_dir / "docker.io" / "hosts.toml"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    assert wrong(list(check_mirror_files(setup))) == {"mirror-files": Level.FAIL}


def test_the_remedy_asks_for_what_is_configured_already_too(setup: Setup) -> None:
    root = setup.distro.hosts_dir
    configure(root, Registry("docker.io"), Registry("reg.test:5000", "http://reg.test:5000"))
    store = Store({}, ["docker.io/library/a:1", "quay.io/b/c:1", "reg.test:5000/d:1"])
    (said,) = [verdict for verdict in check_images(setup, store) if verdict.level is not Level.OK]
    command = shlex.split(said.remedy.partition(": ")[2])
    assert command[:2] == ["stafett", "configure"]
    words = [
        "--registry",
        "docker.io",
        "--registry",
        "reg.test:5000",
        "--upstream",
        "reg.test:5000=http://reg.test:5000",
    ]
    assert command[2:] == [*words, "--registry", "quay.io", "--hosts-dir", str(root)]


def test_a_folder_that_is_not_ours_does_not_lead_to_the_gateway(setup: Setup) -> None:
    root = setup.distro.hosts_dir
    configure(root, Registry(DEFAULT))
    assert goes_through(root, "quay.io")
    for name in ("quay.io", "ghcr.io", "a.test_5000_"):
        (root / name).mkdir()
    (root / "quay.io" / "ca.crt").write_text("a certificate")
    (root / "ghcr.io" / "hosts.toml").write_text('server = "https://ghcr.io"\n')
    found = [goes_through(root, name) for name in ("quay.io", "ghcr.io", "a.test:5000", "b.test:5000")]
    assert found == [False, False, False, True]


def test_records_that_cri_keeps_under_an_images_id_are_no_images(setup: Setup) -> None:
    configure(setup.distro.hosts_dir, Registry("reg.test"))
    names = ["reg.test/app:1", f"reg.test/app@sha256:{'0' * 64}", f"sha256:{'1' * 64}"]
    assert wrong(list(check_images(setup, Store({}, names)))) == {}


def process(proc: Path, pid: int, *words: str, namespace: str = "mnt:[1]", **environment: str) -> None:
    folder = proc / str(pid)
    (folder / "ns").mkdir(parents=True)
    (folder / "ns" / "mnt").symlink_to(namespace)
    (folder / "cmdline").write_text("".join(f"{word}\0" for word in words))
    (folder / "environ").write_text("".join(f"{name}={value}\0" for name, value in environment.items()))


def test_a_running_service_tells_what_it_was_told(tmp_path: Path) -> None:
    (tmp_path / "self" / "ns").mkdir(parents=True)
    (tmp_path / "self" / "ns" / "mnt").symlink_to("mnt:[1]")
    process(tmp_path, 10, "/usr/bin/python3.11", "/usr/bin/stafett", "node", "--zone", "a", STAFETT_NODE_RACK="r")
    process(tmp_path, 11, "python", "-m", "stafett", "gateway")
    process(tmp_path, 12, "stafett", "tracker")
    process(tmp_path, 13, "sudo", "stafett", "node", "--zone", "b")
    process(tmp_path, 14, "stafett", "gateway", "--zone", "c", namespace="mnt:[2]")
    node, gateway = told("node", tmp_path), told("gateway", tmp_path)
    assert node is not None
    assert (node.pid, list(node.arguments), node.environment["STAFETT_NODE_RACK"]) == (10, ["--zone", "a"], "r")
    assert gateway is not None
    assert (gateway.pid, list(gateway.arguments)) == (11, [])
    process(tmp_path, 15, "stafett", "node")
    assert told("node", tmp_path) is None, "which of the two is meant nobody knows"


def test_our_own_environment_goes_before_a_running_service(setup: Setup) -> None:
    assert setup.node.node_id == "h1"
    assert setup.sources == "node: STAFETT_NODE_* of this environment, gateway: STAFETT_GATEWAY_* of this environment"


def test_every_line_of_the_doctor_is_explained() -> None:
    top = Path(__file__).parents[3]
    source = "".join(path.read_text() for path in (top / "services" / "cli" / "doctor").glob("*.py"))
    by_variable = {"mirror-files", "content-root", "gateway", "tag-port"}
    assert all(f'"{name}"' in source for name in by_variable)
    said = by_variable | set(re.findall(r'\b(?:ok|warn|fail)\("([a-z-]+)"', source))
    rows = re.findall(r"^\| (`.*?) \|", (top / "docs" / "doctor.md").read_text(), re.MULTILINE)
    assert said == {name for row in rows for name in re.findall(r"`([a-z-]+)`", row)}
