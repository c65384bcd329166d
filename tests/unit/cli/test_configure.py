"""Mirror files come and go without a trace, whatever was there and wherever the command is interrupted."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from typer.testing import CliRunner

from stafett.cli.app import app
from stafett.cli.configure.hosts_toml import DEFAULT, Gateway, Registry
from stafett.cli.configure.mirror_files import carry_out, changes_for, removals
from stafett.cli.containerd_config import ContainerdConfig
from stafett.common.errors import StartupFailed

GATEWAY = Gateway()
REGISTRIES = [Registry("docker.io"), Registry("reg.test:5000", "http://reg.test:5000"), Registry(DEFAULT)]
OWN = """\
# the operator's
server = "https://docker.corp"
ca = "corp.pem"

[host."https://mirror.corp"]
  capabilities = ["pull", "resolve"]
  skip_verify = true
  [host."https://mirror.corp".header]
    x-team = ["shop"]
"""

Tree = dict[str, tuple[int, bytes] | None]


def tree_of(folder: Path) -> Tree:
    """Everything below a folder: files with mode and content, folders as None."""
    return {
        str(path.relative_to(folder)): None if path.is_dir() else (path.stat().st_mode, path.read_bytes())
        for path in sorted(folder.rglob("*"))
    }


def fresh(base: Path) -> None:
    """Nothing is there, not even the folder."""


def empty(base: Path) -> None:
    (base / "certs.d").mkdir()


def with_own_files(base: Path) -> None:
    folder = base / "certs.d" / "docker.io"
    folder.mkdir(parents=True)
    (folder / "hosts.toml").write_text(OWN)
    (folder / "hosts.toml").chmod(0o600)
    other = base / "certs.d" / "other.corp"
    other.mkdir()
    (other / "hosts.toml").write_text('server = "https://other.corp"\n')


def with_certificates(base: Path) -> None:
    folder = base / "certs.d" / "reg.test:5000"
    folder.mkdir(parents=True)
    for name in ("ca.crt", "client.cert", "client.key", "unrelated.txt"):
        (folder / name).write_text(name)


BEFORE: list[Callable[[Path], None]] = [fresh, empty, with_own_files, with_certificates]


def configure(root: Path, registries: list[Registry] | None = None) -> int:
    changes = changes_for(root, REGISTRIES if registries is None else registries, GATEWAY)
    carry_out(root, changes)
    return len(changes)


def hosts_of(folder: Path) -> dict[str, object]:
    return tomllib.loads((folder / "hosts.toml").read_text())


@pytest.mark.parametrize("before", BEFORE)
def test_what_was_there_comes_back_to_the_byte(tmp_path: Path, before: Callable[[Path], None]) -> None:
    before(tmp_path)
    then, root = tree_of(tmp_path), tmp_path / "certs.d"
    assert configure(root) == len(REGISTRIES)
    written = tree_of(tmp_path)
    assert configure(root) == 0, "a second time there is nothing to do"
    assert tree_of(tmp_path) == written
    carry_out(root, removals(root))
    assert tree_of(tmp_path) == then
    carry_out(root, removals(root))
    assert tree_of(tmp_path) == then


@pytest.mark.parametrize("before", BEFORE)
def test_registries_that_are_not_listed_any_more_are_put_back(tmp_path: Path, before: Callable[[Path], None]) -> None:
    before(tmp_path)
    then, root = tree_of(tmp_path), tmp_path / "certs.d"
    configure(root)
    configure(root, [Registry("new.test")])
    assert not (root / DEFAULT).exists()
    configure(root, [])
    assert tree_of(tmp_path) == then


@pytest.mark.parametrize("before", BEFORE)
def test_wherever_it_is_killed_the_next_run_completes_it_and_removal_leaves_nothing(
    tmp_path: Path, before: Callable[[Path], None]
) -> None:
    base = tmp_path / "base"
    for step in range(1, 200):
        base.mkdir()
        before(base)
        then, root = tree_of(base), base / "certs.d"
        done = run_until_step(step, lambda: configure(base / "certs.d"))
        own = root / "docker.io" / "hosts.toml"
        if "certs.d/docker.io/hosts.toml" in then:
            assert own.exists(), f"step {step}: the operator's file is gone"
        if step % 2:
            configure(root)
            assert configure(root) == 0
        carry_out(root, removals(root))
        assert tree_of(base) == then, f"step {step}"
        for path in sorted(base.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        base.rmdir()
        if done:
            assert step > 5
            return
    pytest.fail("it never came to its end")


@pytest.mark.parametrize("before", BEFORE)
def test_wherever_a_removal_is_killed_the_next_one_completes_it(tmp_path: Path, before: Callable[[Path], None]) -> None:
    for step in range(1, 200):
        base = tmp_path / str(step)
        base.mkdir()
        before(base)
        then, root = tree_of(base), base / "certs.d"
        configure(root)
        done = run_until_step(step, partial(remove, root))
        carry_out(root, removals(root))
        assert tree_of(base) == then, f"step {step}"
        if done:
            assert step > 2
            return
    pytest.fail("it never came to its end")


def remove(root: Path) -> None:
    carry_out(root, removals(root))


def run_until_step(step: int, work: Callable[[], object]) -> bool:
    """Run something in a process that dies at its step-th change of the file system; True if it came to its end."""
    child = os.fork()
    if child == 0:
        seen = 0

        def die(event: str, arguments: tuple[object, ...]) -> None:
            nonlocal seen
            writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
            if event in ("os.rename", "os.link", "os.mkdir", "os.remove", "os.rmdir", "os.chmod") or writes:
                seen += 1
                if seen == step:
                    os._exit(9)

        sys.addaudithook(die)
        try:
            work()
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status) == 0


def test_the_gateway_comes_first_and_the_operators_hosts_keep_their_settings(tmp_path: Path) -> None:
    with_own_files(tmp_path)
    root = tmp_path / "certs.d"
    configure(root)
    found = hosts_of(root / "docker.io")
    hosts = found["host"]
    assert isinstance(hosts, dict)
    assert list(hosts) == [GATEWAY.mirror_url, "https://mirror.corp", "https://docker.corp"]
    assert hosts[GATEWAY.mirror_url] == {"capabilities": ["pull"]}
    assert hosts["https://mirror.corp"]["header"] == {"x-team": ["shop"]}
    assert hosts["https://docker.corp"] == {"capabilities": ["pull", "resolve", "push"], "ca": "corp.pem"}
    assert found["server"] == GATEWAY.tags_url
    assert (root / "docker.io" / "hosts.toml").stat().st_mode & 0o777 == 0o600
    assert (root / "docker.io" / "hosts.toml.before-stafett").read_text() == OWN


def test_certificates_beside_the_file_stay_in_use(tmp_path: Path) -> None:
    with_certificates(tmp_path)
    root = tmp_path / "certs.d"
    configure(root)
    assert hosts_of(root / "reg.test:5000")["host"] == {
        GATEWAY.mirror_url: {"capabilities": ["pull"]},
        "http://reg.test:5000": {
            "capabilities": ["pull", "resolve", "push"],
            "ca": ["ca.crt"],
            "client": [["client.cert", "client.key"]],
        },
    }


def test_with_default_tags_go_upstream_only(tmp_path: Path) -> None:
    configure(tmp_path, [Registry(DEFAULT)])
    assert hosts_of(tmp_path / DEFAULT) == {"host": {GATEWAY.mirror_url: {"capabilities": ["pull"]}}}


def test_a_file_that_somebody_has_changed_since_is_not_lost(tmp_path: Path) -> None:
    with_own_files(tmp_path)
    root = tmp_path / "certs.d"
    configure(root)
    (root / "docker.io" / "hosts.toml").write_text('server = "https://new.corp"\n')
    with pytest.raises(StartupFailed, match="before-stafett is there, too: remove one of them"):
        configure(root)
    assert "new.corp" in (root / "docker.io" / "hosts.toml").read_text()


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "docker.io").mkdir()
    (tmp_path / "docker.io" / "hosts.toml").write_text("server = [")
    with pytest.raises(StartupFailed, match=r"hosts\.toml of docker\.io cannot be read"):
        configure(tmp_path)


def call(*arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["configure", *arguments])
    return done.exit_code, done.output


def test_the_command_shows_checks_writes_and_removes(tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text(f'[plugins."io.containerd.cri.v1.images".registry]\nconfig_path = "{tmp_path / "d"}"\n')
    where = ("--hosts-dir", str(tmp_path / "d"), "--config", str(config))
    asked = ("--registry", "docker.io", *where)
    assert call(*asked, "--check")[0] == 1
    code, shown = call(*asked, "--dry-run")
    assert code == 0
    assert '+[host."http://127.0.0.1:7462"]' in shown
    assert not (tmp_path / "d").exists()
    assert call(*asked) == (0, f"wrote {tmp_path / 'd' / 'docker.io' / 'hosts.toml'}\n")
    assert call(*asked, "--check")[0] == 0
    assert call("--remove", *where)[0] == 0
    assert not (tmp_path / "d").exists()


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ("version = 2\n", "config_path is not set"),
        ('[plugins."io.containerd.grpc.v1.cri".registry]\nconfig_path = "/other"\n', "config_path is /other"),
        ('[plugins."io.containerd.grpc.v1.cri".containerd]\ndiscard_unpacked_layers = true\n', "discards layers"),
        ('[plugins."io.containerd.cri.v1.images"]\ndiscard_unpacked_layers = true\n', "discards layers"),
    ],
)
def test_what_containerds_own_configuration_lacks_is_said_exactly(tmp_path: Path, config: str, said: str) -> None:
    (tmp_path / "config.toml").write_text(config)
    where = ("--hosts-dir", str(tmp_path / "d"), "--config", str(tmp_path / "config.toml"))
    code, output = call("--registry", "docker.io", *where)
    assert code == 0
    assert said in output
    assert f'config_path = "{tmp_path / "d"}"' in output


def test_imports_count_and_later_ones_win(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text(
        'imports = ["conf.d/*.toml"]\n[plugins."io.containerd.grpc.v1.cri".registry]\nconfig_path = "/a"\n'
    )
    (tmp_path / "conf.d").mkdir()
    for name, value in (("1", "/b"), ("2", "/c:/d")):
        text = f'[plugins."io.containerd.grpc.v1.cri".registry]\nconfig_path = "{value}"\n'
        (tmp_path / "conf.d" / f"{name}.toml").write_text(text)
    found = ContainerdConfig.read(tmp_path / "config.toml")
    assert found is not None
    assert found.uses(Path("/d/"))
    assert not found.uses(Path("/b"))


@pytest.mark.parametrize("wrong", ["a/b", "", "..", ".hidden"])
def test_a_registry_that_is_no_host_name_is_refused(tmp_path: Path, wrong: str) -> None:
    assert call("--registry", wrong, "--hosts-dir", str(tmp_path / "d"))[0] == 2
    assert not (tmp_path / "d").exists()


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Path]:
    """A certs.d with the operator's files, on a file system that cannot be written."""
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", tmp_path], check=True)
    try:
        with_own_files(tmp_path)
        subprocess.run(["mount", "-o", "remount,ro", tmp_path], check=True)
        yield tmp_path / "certs.d"
    finally:
        subprocess.run(["umount", tmp_path], check=True)


@pytest.mark.needs_root
def test_a_read_only_folder_is_left_alone_and_told_of(read_only: Path) -> None:
    then = tree_of(read_only)
    with pytest.raises(StartupFailed, match="cannot be written: Read-only file system"):
        configure(read_only)
    assert tree_of(read_only) == then
    assert changes_for(read_only, [Registry("docker.io")], GATEWAY), "what would change can still be shown"
