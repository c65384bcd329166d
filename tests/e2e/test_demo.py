"""The demo as a stranger plays it: in both stores, on a terminal and without one."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

from stafett.cli.local_cluster.containerd import Containerd
from stafett.cli.local_cluster.parts import run
from stafett.cli.local_cluster.processes import Processes, wait_until
from stafett.common import oci_layout

STAFETT = (sys.executable, "-m", "stafett")
HOSTS = 4
DIGESTS = 9
"""What each pull brings: index, manifest, config, six layers."""
PULLS = 4 + 4 + 1 + 1 + 1

needs_containerd = (pytest.mark.needs_root, pytest.mark.needs_program("containerd"))


def check_story(story: Mapping[str, Any], slack: float = 0.5) -> None:
    """`slack`: the share of an image that may come from upstream though a peer has it, where a tracker was slow.

    That it is none otherwise is tested on hosts whose links are the limit, in tests/relay.
    """
    assert story["failed_pulls"] == 0
    assert [pull["act"] for pull in story["pulls"]] == [2, 2, 2, 2, 3, 4, 5]
    assert story["failover"]["frozen"].startswith("host-")
    assert story["failover"]["killed"].startswith("host-")
    assert story["failover"]["frozen"] != story["failover"]["killed"]
    assert story["longest_gap_seconds"] > 0
    assert story["digests_verified"] == PULLS * DIGESTS
    assert story["image_bytes"] <= story["upstream_bytes"] < (1 + slack) * story["image_bytes"]
    for pull in story["pulls"][4:]:
        assert pull["bytes_peer"] > (1 - slack) * story["image_bytes"]


def check_summary(lines: list[str], story: Mapping[str, Any]) -> None:
    """The six lines at the end say what the JSON says."""
    copies, (frozen, killed) = story["upstream_bytes"] / story["image_bytes"], list(story["failover"].values())[:2]
    seconds = r"(\d+\.\d+) s"
    expected = [
        rf"{HOSTS} hosts at once: {seconds} without Stafett, {seconds} with it",
        rf"upstream copies with Stafett: {copies:.2f} for 7 pulls",
        rf"longest gap while {frozen} froze and {killed} was killed: {seconds}",
        "failed pulls: 0",
        rf"digests verified: {PULLS * DIGESTS} of {PULLS * DIGESTS}",
        r"bytes came from: host-1: .*; host-2: .*; host-3: .*; host-4: .*",
    ]
    began = next(number for number, line in enumerate(lines) if "hosts at once: " in line)
    assert re.search(r"All five acts took \d+ s\.$", lines[began - 1])
    found = [re.fullmatch(pattern, line) for pattern, line in zip(expected, lines[began:], strict=False)]
    assert len(found) == len(expected)
    assert all(found), lines[began : began + len(expected)]
    said = [float(number) for match in found if match for number in match.groups()]
    assert said == pytest.approx(
        [story["plain_seconds"], story["together_seconds"], story["longest_gap_seconds"]], abs=0.06
    )


@contextmanager
def kept_demo(tmp_path: Path, temporary: Path, *options: str) -> Iterator[tuple[dict[str, Any], list[str]]]:
    """A demo that has been played and stays: what it ended with, and all lines that it has said."""
    log = tmp_path / "said"
    # Jobs of a shell's background ignore SIGINT, and so would their children.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with log.open("w") as said:
        demo = subprocess.Popen(
            [*STAFETT, "demo", "--json", "--keep", *options],
            stdout=subprocess.PIPE,
            stderr=said,
            env={**os.environ, "TMPDIR": str(temporary)},
            text=True,
        )
    try:
        assert demo.stdout is not None
        story = json.loads(demo.stdout.readline())
        wait_until(lambda: "in a browser" in log.read_text() or demo.poll() is not None, "how to use it")
        assert demo.poll() is None
        yield story, log.read_text().splitlines()
        demo.send_signal(signal.SIGINT)
        assert demo.wait(60) == 0
    finally:
        demo.kill()
        demo.communicate()
    assert list(temporary.iterdir()) == []


def told(lines: list[str], words: str) -> str:
    """The command that the demo tells its user, by two words of it."""
    (found,) = [line for line in lines if line.startswith("  ") and f"{words} " in line]
    return found.strip()


@pytest.mark.needs_program("skopeo")
@pytest.mark.timeout(240)
def test_the_demo_plays_in_full_and_what_it_says_to_try_works(tmp_path: Path, short_path: Path) -> None:
    with kept_demo(tmp_path, short_path, "--store", "oci-layout") as (story, lines):
        check_story(story, slack=0.4)  # one of its layers fetched twice at most
        check_summary(lines, story)
        assert story["together_seconds"] < story["plain_seconds"]
        for number in "①②③④⑤":
            assert any(line.startswith(f"{number} ") for line in lines)

        def tried(words: str) -> str:
            done = run(["sh", "-c", f"cd {tmp_path} && {told(lines, words)}"])
            assert done.returncode == 0, done.stderr
            return done.stdout

        assert len(re.findall(r"^ *host-\d +ready ", tried("stafett nodes"), re.MULTILINE)) == HOSTS
        assert re.search(r"registry\.demo/shop/frontend:1\.0 .* zone-a:2 zone-b:2 ", tried("stafett images"))
        assert "host-1 has it: its container runtime does not ask" in tried("stafett explain")
        assert "from local" in tried("stafett pull")
        pulled = {path.name for path in (tmp_path / "pulled" / "blobs" / "sha256").iterdir()}
        assert len(pulled) == DIGESTS
        assert oci_layout.read_images(tmp_path / "pulled")[0][0].name == "registry.demo/shop/frontend:1.0"
        tried("skopeo copy")
        copied = {path.name for path in (tmp_path / "copied").iterdir()} - {"manifest.json", "version"}
        assert copied < pulled, "config and layers, by digest"
        assert len(copied) == DIGESTS - 2
        for url in (line.strip() for line in lines if line.startswith("  http://")):
            assert httpx2.get(url, trust_env=False).status_code == 200


@pytest.mark.needs_root
@pytest.mark.needs_program("containerd")
@pytest.mark.timeout(180)
def test_a_containerd_of_the_users_own_can_pull_from_the_demo(tmp_path: Path, short_path: Path) -> None:
    own = Containerd(short_path / "own")
    (short_path / "demo").mkdir()
    with Processes(tmp_path / "logs") as processes:
        own.start(processes, "containerd")
        try:
            with kept_demo(tmp_path, short_path / "demo", "--quick", "--store", "containerd") as (story, lines):
                check_story(story)
                check_summary(lines, story)
                commands = [line.strip() for line in lines if line.startswith("  ")]
                configure = next(number for number, line in enumerate(commands) if " configure " in line)
                environment = {**os.environ, "CONTAINERD_ADDRESS": str(own.socket)}
                for command in commands[configure : configure + 3]:
                    done = subprocess.run(
                        shlex.split(command), env=environment, capture_output=True, text=True, timeout=60, check=False
                    )
                    assert done.returncode == 0, f"{command}\n{done.stderr}"
                    if " pull " in command:
                        assert "registry.demo/shop/frontend:1.0" in own.ctr("images", "ls", "-q").stdout
                assert own.ctr("images", "ls", "-q").stdout == ""
                for command in (line for line in commands if line.startswith("ctr --address")):
                    assert run(shlex.split(command)).returncode == 0
        finally:
            own.unmount()


@pytest.mark.parametrize("store", ["oci-layout", pytest.param("containerd", marks=needs_containerd)])
@pytest.mark.timeout(180)
def test_the_demo_plays_on_a_terminal(tmp_path: Path, store: str) -> None:
    command = shlex.join([*STAFETT, "demo", "--json", "--quick", "--store", store])
    done = run(["script", "--quiet", "--return", "--command", command, str(tmp_path / "typescript")], 170)
    assert done.returncode == 0, done.stdout[-2000:]
    lines = done.stdout.splitlines()
    check_story(json.loads(lines[-1]))
    check_summary(lines, json.loads(lines[-1]))
    assert "\x1b[" in done.stdout, "it was drawn on a terminal"
