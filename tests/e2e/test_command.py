"""The stafett command as a user types it."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx2
import pytest

from stafett.cli.local_cluster.cluster import LocalCluster
from stafett.cli.local_cluster.images import MadeImage, make_image
from stafett.cli.local_cluster.parts import run
from stafett.cli.local_cluster.processes import wait_until
from stafett.common.digest import Digest
from tests.e2e.bed import PLATFORM, Bed, digests_of
from tests.e2e.upstream import Upstream

STAFETT = (sys.executable, "-m", "stafett")


def test_pull_gets_an_image_from_a_peer_and_the_overviews_tell_of_it(tmp_path: Path) -> None:
    with LocalCluster() as cluster:
        bed = Bed(cluster, Upstream(tmp_path / "unused"), tmp_path)
        cluster.start_redis()
        cluster.start_tracker()
        holding, asking = cluster.add_host("holding", zone="a"), cluster.add_host("asking", zone="b")
        image = make_image(holding.content_root, "reg.test/lib/app:1", {PLATFORM: [100_000, 2_000_000]})
        for host in (holding, asking):
            cluster.start_node(host)
            cluster.start_gateway(host, {"tags": "peers"})
        bed.wait_held(holding, digests_of(image))
        options: list[str | Path] = [
            "--via",
            asking.gateway_url,
            "--to",
            tmp_path / "pulled",
            "--platform",
            PLATFORM,
            "--json",
        ]
        pulled = run([*STAFETT, "pull", "reg.test/lib/app:1", *options])
        assert pulled.returncode == 0, pulled.stderr
        document = json.loads(pulled.stdout)
        assert document["bytes_by_source"] == {"peer_region": image.pulled_bytes(PLATFORM)}
        for digest in digests_of(image):
            assert Digest.of((tmp_path / "pulled" / "blobs" / "sha256" / digest.hex).read_bytes()) == digest
        again = run([*STAFETT, "pull", "reg.test/lib/app:1", *options])
        assert sum(json.loads(again.stdout)["bytes_by_source"].values()) < 5_000, "only manifests are fetched again"

        target: list[str | Path] = ["--tracker", cluster.tracker_target, "--json"]
        layer = str(max(digests_of(image), key=str))
        explained = json.loads(run([*STAFETT, "explain", layer, "--from", "asking", *target]).stdout)
        (candidate,) = explained["candidates"]
        assert (candidate["node"], candidate["tier"], candidate["rank"]) == ("holding", "region", 1)
        assert 0 < candidate["score"] <= 1
        assert candidate["components"].keys() >= {"heartbeat", "load", "outcomes"}
        assert explained["reason"] == "the only holder"
        shown = run([*STAFETT, "explain", layer, "--from", "asking", *target[:2]]).stdout
        assert "first: holding: the only holder" in shown
        assert run([*STAFETT, "explain", layer, "--from", "nobody", *target]).returncode == 1
        whole = json.loads(run([*STAFETT, "explain", "reg.test/lib/app:1", "--from", "asking", *target]).stdout)
        assert {piece["digest"]: piece["served_by"] for piece in whole["pieces"]} == {
            str(digest): "holding" for digest in digests_of(image)
        }
        assert [piece["kind"] for piece in whole["pieces"]] == ["index", "manifest", "config", "layer", "layer"]
        assert whole["upstream_bytes"] == 0
        assert run([*STAFETT, "explain", "reg.test/lib/none:1", "--from", "asking", *target]).returncode == 1
        assert run([*STAFETT, "explain", "sha256:no", "--from", "asking", *target]).returncode == 2
        nodes = json.loads(run([*STAFETT, "nodes", *target]).stdout)["nodes"]
        assert [(node["id"], node["state"], node["topology"]["zone"]) for node in nodes] == [
            ("asking", "ready", "b"),
            ("holding", "ready", "a"),
        ]
        (listed,) = json.loads(run([*STAFETT, "images", *target]).stdout)["images"]
        assert (listed["name"], listed["complete_node_ids"]) == ("reg.test/lib/app:1", ["holding"])
        assert listed["content_bytes"] == image.pulled_bytes(PLATFORM)
        assert "holding" in run([*STAFETT, "nodes", *target[:2]]).stdout

        assert run([*STAFETT, "drain", "holding", *target[:2]]).returncode == 0
        wait_until(
            lambda: httpx2.get(f"{asking.gateway_url}{layer_of(image)}", trust_env=False).status_code == 404, "drain"
        )
        assert run([*STAFETT, "drain", "holding", "--undo", *target[:2]]).returncode == 0
        wait_until(
            lambda: httpx2.get(f"{asking.gateway_url}{layer_of(image)}", trust_env=False).status_code == 200, "return"
        )
        assert run([*STAFETT, "drain", "nobody", *target[:2]]).returncode == 1


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("nodes", "--tracker", "ipv4:127.0.0.1:1"), 1, "do not answer"),
        (("images", "--tracker", "ipv4:127.0.0.1:1"), 1, "do not answer"),
        (("pull", "reg.test/UPPER:1", "--via", "http://127.0.0.1:1", "--to", "x"), 1, "invalid name"),
        (("pull", "reg.test/a:1", "--via", "http://127.0.0.1:1", "--to", "x"), 1, "http://127.0.0.1:1"),
        (("pull", "reg.test/a@sha256:12", "--via", "http://127.0.0.1:1", "--to", "x"), 1, "invalid digest"),
        (("node", "--max-streams", "0", "--store", "nonsense"), 2, "--store"),
        (("gateway", "--listen-port", "70000"), 2, "--listen-port"),
    ],
)
def test_mistakes_get_one_clear_line_and_no_traceback(
    tmp_path: Path, arguments: tuple[str, ...], code: int, says: str
) -> None:
    done = subprocess.run([*STAFETT, *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == code, done.stderr
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def check_story(story: Mapping[str, Any]) -> None:
    assert story["failed_pulls"] == 0
    assert [pull["act"] for pull in story["pulls"]] == [2, 2, 2, 2, 3, 4, 5]
    assert story["failover"]["frozen"].startswith("host-")
    assert story["failover"]["killed"].startswith("host-")
    assert story["failover"]["frozen"] != story["failover"]["killed"]
    assert story["longest_gap_seconds"] > 0
    assert story["together_seconds"] < story["plain_seconds"]
    assert story["digests_verified"] == 11 * 9
    assert story["image_bytes"] <= story["upstream_bytes"] < 1.05 * story["image_bytes"]
    for pull in story["pulls"][4:]:
        assert pull["bytes_peer"] > 0.99 * story["image_bytes"]


@pytest.mark.timeout(180)
def test_the_demo_plays_five_acts_and_stays_when_it_is_told_to(tmp_path: Path) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    log = tmp_path / "said"
    command = [*STAFETT, "demo", "--json", "--keep", "--store", "oci-layout"]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    with log.open("w") as said:
        demo = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=said, env=environment, text=True)
    try:
        assert demo.stdout is not None
        check_story(json.loads(demo.stdout.readline()))
        wait_until(lambda: "browser" in log.read_text(), "how to use it")
        tried = next(line for line in log.read_text().splitlines() if "stafett nodes" in line)
        nodes = run([*STAFETT, *tried.split()[2:]], 20)
        assert len(re.findall(r"^ *host-\d +ready ", nodes.stdout, re.MULTILINE)) == 4, nodes.stdout + nodes.stderr
        assert demo.poll() is None
        demo.send_signal(signal.SIGINT)
        assert demo.wait(60) == 0
    finally:
        demo.kill()
        demo.communicate()
    lines = log.read_text()
    for number in "①②③④⑤":
        assert f"{number} " in lines
    assert list(tmp_path.glob("stafett-*")) == []


@pytest.mark.needs_root
@pytest.mark.needs_program("containerd")
@pytest.mark.timeout(180)
def test_the_demo_plays_on_a_terminal_with_real_containerds(tmp_path: Path) -> None:
    command = shlex.join([*STAFETT, "demo", "--json", "--store", "containerd"])
    done = run(["script", "--quiet", "--return", "--command", command, str(tmp_path / "typescript")], 170)
    assert done.returncode == 0, done.stdout[-2000:]
    check_story(json.loads(done.stdout.splitlines()[-1]))
    assert "longest gap" in done.stdout
    assert "\x1b[" in done.stdout, "it was drawn on a terminal"


def test_an_interrupted_demo_leaves_nothing_behind(tmp_path: Path) -> None:
    # Jobs of a shell's background ignore SIGINT, and so would their children.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    demo = subprocess.Popen(
        [*STAFETT, "demo", "--store", "oci-layout"],
        env={**os.environ, "TMPDIR": str(tmp_path)},
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        wait_until(lambda: bool(list(tmp_path.glob("stafett-*/logs/gateway-*"))), "the demo's gateways")
        time.sleep(1.0)
        demo.send_signal(signal.SIGINT)
        _, errors = demo.communicate(timeout=60)
    finally:
        demo.kill()
    assert demo.returncode == 130
    assert b"Traceback" not in errors
    assert list(tmp_path.glob("stafett-*")) == []
    assert not [line for line in Path("/proc").glob("[0-9]*/cmdline") if str(tmp_path).encode() in _read(line)]


def layer_of(image: MadeImage) -> str:
    return f"/v2/lib/app/blobs/{image.blobs[PLATFORM][1].digest}?ns=reg.test"


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""
