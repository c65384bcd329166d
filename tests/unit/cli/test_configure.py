"""Mirror files come and go without a trace, whatever was there and wherever the command is interrupted."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from typer.testing import CliRunner

from stafett.cli.app import app
from stafett.cli.configure.changing import carry_out
from stafett.cli.configure.hosts_toml import DEFAULT, Gateway, Registry
from stafett.cli.configure.mirror_files import changes_for, origins, removals
from stafett.common.errors import StartupFailed

GATEWAY = Gateway()
REGISTRIES = [Registry("docker.io"), Registry("reg.test:5000", "http://reg.test:5000"), Registry(DEFAULT)]
UPSTREAM = ["pull", "resolve", "push"]
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

OWN_DEFAULT = """\
ca = ["corp.crt", "/etc/ssl/other.crt"]
skip_verify = false
[host."https://cache.corp"]
  client = [["a.cert", "a.key"]]
  [host."https://cache.corp".header]
    authorization = "Basic secret"
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


def with_own_default(base: Path) -> None:
    folder = base / "certs.d" / DEFAULT
    folder.mkdir(parents=True)
    (folder / "hosts.toml").write_text(OWN_DEFAULT)
    (folder / "hosts.toml").chmod(0o600)
    (folder / "corp.crt").write_text("a certificate")


def with_both_folders_of_a_port(base: Path) -> None:
    for name in ("reg.test:5000", "reg.test_5000_"):
        folder = base / "certs.d" / name
        folder.mkdir(parents=True)
        (folder / "hosts.toml").write_text(f'server = "http://{name[8]}"\n')


BEFORE: list[Callable[[Path], None]] = [
    fresh,
    empty,
    with_own_files,
    with_certificates,
    with_own_default,
    with_both_folders_of_a_port,
]


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
    assert [origin.registry.name for origin in origins(root)] == ["new.test"]
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
    assert hosts["https://docker.corp"] == {"capabilities": UPSTREAM, "ca": "corp.pem"}
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
            "capabilities": UPSTREAM,
            "ca": ["ca.crt"],
            "client": [["client.cert", "client.key"]],
        },
    }


def test_with_default_tags_go_upstream_only(tmp_path: Path) -> None:
    configure(tmp_path, [Registry(DEFAULT)])
    assert hosts_of(tmp_path / DEFAULT) == {"host": {GATEWAY.mirror_url: {"capabilities": ["pull"]}}}


def test_what_the_operator_says_for_all_others_stays_and_holds_for_registries_that_get_a_folder(tmp_path: Path) -> None:
    with_own_default(tmp_path)
    root = tmp_path / "certs.d"
    configure(root)
    cache = {"client": [["a.cert", "a.key"]], "header": {"authorization": "Basic secret"}}
    assert hosts_of(root / DEFAULT) == {
        "ca": ["corp.crt", "/etc/ssl/other.crt"],
        "skip_verify": False,
        "host": {GATEWAY.mirror_url: {"capabilities": ["pull"]}, "https://cache.corp": cache},
    }
    of_server = {"ca": ["../_default/corp.crt", "/etc/ssl/other.crt"], "skip_verify": False}
    assert hosts_of(root / "docker.io")["host"] == {
        GATEWAY.mirror_url: {"capabilities": ["pull"]},
        "https://cache.corp": {**cache, "client": [["../_default/a.cert", "../_default/a.key"]]},
        "https://registry-1.docker.io": {"capabilities": UPSTREAM, **of_server},
    }
    assert (root / "docker.io" / "hosts.toml").stat().st_mode & 0o777 == 0o600, "it has the same secret"
    configure(root, [Registry("docker.io")])
    assert "https://cache.corp" in str(hosts_of(root / "docker.io")), "also when all others are put back"


def test_certificates_for_all_others_stay_in_use(tmp_path: Path) -> None:
    (tmp_path / DEFAULT).mkdir()
    (tmp_path / DEFAULT / "corp.crt").write_text("a certificate")
    configure(tmp_path)
    assert hosts_of(tmp_path / DEFAULT)["ca"] == ["corp.crt"]
    assert 'ca = ["../_default/corp.crt"]' in (tmp_path / "docker.io" / "hosts.toml").read_text()


def test_an_own_folder_without_a_word_in_it_hides_what_is_said_for_all_others(tmp_path: Path) -> None:
    with_own_default(tmp_path)
    (tmp_path / "certs.d" / "docker.io").mkdir()
    configure(tmp_path / "certs.d")
    assert "cache.corp" not in (tmp_path / "certs.d" / "docker.io" / "hosts.toml").read_text()


def test_a_server_that_is_a_host_too_keeps_what_is_said_of_each(tmp_path: Path) -> None:
    (tmp_path / "docker.io").mkdir()
    own = 'server = "https://corp"\nca = "corp.pem"\n[host."https://corp"]\ncapabilities = ["pull"]\n'
    (tmp_path / "docker.io" / "hosts.toml").write_text(own)
    configure(tmp_path)
    assert hosts_of(tmp_path / "docker.io")["host"] == {
        GATEWAY.mirror_url: {"capabilities": ["pull"]},
        "https://corp": {"capabilities": ["pull"]},
        "https://corp#server": {"capabilities": UPSTREAM, "ca": "corp.pem"},
    }


def test_the_gateway_comes_before_hosts_that_are_written_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "docker.io").mkdir()
    own = '[host]\n"https://corp" = { capabilities = ["pull"], skip_verify = true }\n'
    (tmp_path / "docker.io" / "hosts.toml").write_text(own)
    configure(tmp_path)
    text = (tmp_path / "docker.io" / "hosts.toml").read_text()
    assert text.index(f'[host."{GATEWAY.mirror_url}"]') < text.index('[host."https://corp"]\n')
    assert tomllib.loads(text)["host"]["https://corp"] == {"capabilities": ["pull"], "skip_verify": True}


def test_of_two_folders_for_a_port_the_one_that_containerd_takes_is_written(tmp_path: Path) -> None:
    with_both_folders_of_a_port(tmp_path)
    root = tmp_path / "certs.d"
    configure(root)
    assert "http://_" in str(hosts_of(root / "reg.test_5000_")["host"]), "its own server comes behind the gateway"
    assert hosts_of(root / "reg.test:5000") == {"server": "http://:"}


def test_a_registry_on_loopback_is_asked_in_plain_text_as_containerd_does(tmp_path: Path) -> None:
    configure(tmp_path, [Registry("localhost:5000")])
    assert "http://localhost:5000" in str(hosts_of(tmp_path / "localhost_5000_")["host"])


def test_a_file_that_somebody_has_changed_since_is_not_lost(tmp_path: Path) -> None:
    with_own_files(tmp_path)
    root = tmp_path / "certs.d"
    configure(root)
    (root / "docker.io" / "hosts.toml").write_text('server = "https://new.corp"\n')
    with pytest.raises(StartupFailed, match=r"still kept in .*before-stafett: remove that, or put it back"):
        configure(root)
    assert "new.corp" in (root / "docker.io" / "hosts.toml").read_text()


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "docker.io").mkdir()
    (tmp_path / "docker.io" / "hosts.toml").write_text("server = [")
    with pytest.raises(StartupFailed, match=r"docker\.io/hosts\.toml cannot be read"):
        configure(tmp_path)


def call(*arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["configure", *arguments])
    return done.exit_code, done.output


def test_the_command_shows_checks_writes_and_removes(tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    table = '[plugins."io.containerd.cri.v1.images".registry]'
    config.write_text(f'version = 3\n{table}\nconfig_path = "{tmp_path / "d"}"\n')
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


@pytest.mark.parametrize("wrong", ["a/b", "", "..", ".hidden", "a b"])
def test_a_registry_that_is_no_host_name_is_refused(tmp_path: Path, wrong: str) -> None:
    assert call("--registry", wrong, "--hosts-dir", str(tmp_path / "d"))[0] == 2
    assert not (tmp_path / "d").exists()


@pytest.mark.parametrize(
    "wrong", ["127.0.0.1:7462", "http://", "ftp://127.0.0.1", "http://127.0.0.1:7462/?a", "http://[", "http://a:99999"]
)
@pytest.mark.parametrize("option", ["--gateway", "--tags", "--upstream"])
def test_a_url_that_containerd_would_misunderstand_is_refused(tmp_path: Path, option: str, wrong: str) -> None:
    value = f"docker.io={wrong}" if option == "--upstream" else wrong
    assert call("--registry", "docker.io", option, value, "--hosts-dir", str(tmp_path / "d"))[0] == 2
    assert not (tmp_path / "d").exists()


def test_removing_one_registry_is_refused_because_all_would_go(tmp_path: Path) -> None:
    configure(tmp_path)
    assert call("--remove", "--registry", "docker.io", "--hosts-dir", str(tmp_path))[0] == 2
    assert (tmp_path / "docker.io" / "hosts.toml").exists()


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


@pytest.mark.needs_root
def test_of_a_read_only_folder_the_exact_change_is_printed(read_only: Path) -> None:
    code, output = call("--registry", "docker.io", "--hosts-dir", str(read_only), "--config", str(read_only / "none"))
    assert code == 2
    assert "cannot be written: Read-only file system. What has to be changed there" in output
    assert f"--- {read_only}/docker.io/hosts.toml" in output
    assert '+[host."http://127.0.0.1:7462"]' in output
    assert "version = 2" in output, "and what containerd's own configuration lacks"


@pytest.fixture
def for_all() -> Iterator[Path]:
    """A folder that everybody can reach."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.mark.needs_root
@pytest.mark.parametrize("closed", ["certs.d", "certs.d/docker.io", "."])
@pytest.mark.parametrize("options", [("--registry", "docker.io"), ("--remove",), ("--registry", "a.test", "--dry-run")])
def test_who_may_not_look_into_a_folder_is_told_so(for_all: Path, closed: str, options: tuple[str, ...]) -> None:
    configure(for_all / "certs.d")
    call("--registry", "docker.io", "--hosts-dir", str(for_all / "certs.d"), "--check")  # all modules are loaded
    (for_all / closed).chmod(0o700)
    os.seteuid(65534)
    try:
        code, output = call(*options, "--hosts-dir", str(for_all / "certs.d"))
    finally:
        os.seteuid(0)
    assert code == 2, output
    assert "Permission denied" in output
