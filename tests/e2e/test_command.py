"""The stafett command as a user types it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

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


def test_pull_gets_an_image_from_a_peer_unless_that_is_drained(tmp_path: Path) -> None:
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

        target: list[str | Path] = ["--tracker", cluster.tracker_target]
        assert run([*STAFETT, "drain", "holding", *target]).returncode == 0
        wait_until(
            lambda: httpx2.get(f"{asking.gateway_url}{layer_of(image)}", trust_env=False).status_code == 404, "drain"
        )
        explained = run([*STAFETT, "explain", str(image.index.digest), *target, "--json"]).stdout
        assert json.loads(explained)["out_of_service"] == {"holding": "draining"}
        assert "holding (draining)" in run([*STAFETT, "explain", str(image.index.digest), *target]).stdout
        assert run([*STAFETT, "drain", "holding", "--undo", *target]).returncode == 0
        wait_until(
            lambda: httpx2.get(f"{asking.gateway_url}{layer_of(image)}", trust_env=False).status_code == 200, "return"
        )
        assert run([*STAFETT, "drain", "nobody", *target]).returncode == 1


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("nodes", "--tracker", "ipv4:127.0.0.1:1"), 1, "do not answer"),
        (("images", "--tracker", "ipv4:127.0.0.1:1"), 1, "do not answer"),
        (("pull", "reg.test/UPPER:1", "--via", "http://127.0.0.1:1", "--to", "x"), 1, "invalid name"),
        (("pull", "reg.test/a:1", "--via", "http://127.0.0.1:1", "--to", "x"), 1, "http://127.0.0.1:1: cannot connect"),
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


def test_the_shell_completes_commands_options_and_their_values() -> None:
    stafett = Path(sys.executable).with_name("stafett")
    script = run([stafett, "--show-completion", "bash"]).stdout
    for typed, wanted in [
        ("stafett do", "doctor"),
        ("stafett demo --st", "--store"),
        ("stafett demo --store o", "oci-layout"),
    ]:
        words = f"COMP_WORDS=({typed}); COMP_CWORD={len(typed.split()) - 1}"
        shell = f'{script}\n{words}; _stafett_completion {stafett}; echo "${{COMPREPLY[@]}}"'
        done = run(["bash", "-c", shell])
        assert wanted in done.stdout.split(), done.stderr


def layer_of(image: MadeImage) -> str:
    return f"/v2/lib/app/blobs/{image.blobs[PLATFORM][1].digest}?ns=reg.test"
