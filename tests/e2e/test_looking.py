"""What `stafett nodes`, `images` and `explain` tell an operator of a running cluster."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from typer.testing import CliRunner

from stafett.cli.app import app
from stafett.cli.local_cluster.cluster import LocalCluster
from stafett.cli.local_cluster.images import MadeImage, make_image
from stafett.cli.local_cluster.processes import wait_until
from stafett.common.blob_files import blob_path
from stafett.common.digest import Digest

AMD, ARM = "linux/amd64", "linux/arm64"
WHOLE, HALF = "reg.test/lib/app:1", "reg.test/lib/index-only:1"


@dataclass
class Cluster:
    """Two hosts: "holding" in zone a has a whole image for one platform, and of another image only its index."""

    running: LocalCluster
    image: MadeImage
    half: MadeImage

    @property
    def layers(self) -> list[Digest]:
        return [blob.digest for blob in self.image.blobs[AMD][1:]]

    def json(self, *words: str, code: int = 0) -> Any:
        return json.loads(self.text(*words, "--json", code=code))

    def text(self, *words: str, code: int = 0) -> str:
        done = CliRunner().invoke(app, [*words, "--tracker", self.running.tracker_target])
        assert done.exit_code == code, done.output
        return done.stdout

    def table(self, *words: str, code: int = 0) -> list[dict[str, str]]:
        """The rows of a table, by column."""
        lines = [re.split(r" {2,}", line.strip()) for line in self.text(*words, code=code).splitlines()]
        return [dict(zip(lines[0], row, strict=True)) for row in lines[1:] if len(row) == len(lines[0])]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with LocalCluster() as running:
        running.start_redis()
        running.start_tracker()
        holding, asking = running.add_host("holding", zone="a", rack="r1"), running.add_host("asking", zone="b")
        image = make_image(holding.content_root, WHOLE, {AMD: [100_000, 2_000_000], ARM: [50_000]})
        half = make_image(holding.content_root, HALF, {AMD: [3_000], ARM: [4_000]}, seed=1)
        absent = [image.manifests[ARM], *image.blobs[ARM]]
        absent += [part for each in (AMD, ARM) for part in (half.manifests[each], *half.blobs[each])]
        for part in absent:
            blob_path(holding.content_root, part.digest).unlink()
        for host in (holding, asking):
            running.start_node(host)
        found = Cluster(running, image, half)
        wait_until(lambda: "0 bytes" not in found.table("nodes")[1]["bytes"], "the health of the node that holds")
        yield found


def test_nodes_have_their_place_state_reason_and_what_they_hold(cluster: Cluster) -> None:
    asking, holding = cluster.table("nodes")
    assert list(holding) == ["node", "state", "since", "region/zone/rack", "address", "blobs", "bytes", "version"]
    assert (asking["node"], asking["region/zone/rack"], asking["blobs"], asking["bytes"]) == (
        "asking",
        "-/b/-",
        "0",
        "0 bytes",
    )
    assert (holding["node"], holding["state"], holding["region/zone/rack"]) == (
        "holding",
        "ready (registered)",
        "-/a/r1",
    )
    assert holding["address"] == f"127.0.0.1:{cluster.running.hosts[0].node_port}"
    assert re.fullmatch(r"\d+ (s|min)", holding["since"])
    held_bytes = cluster.image.pulled_bytes(AMD) + cluster.half.index.size_bytes
    assert (holding["blobs"], holding["bytes"]) == ("6", "2.1 MB")
    document = cluster.json("nodes")["nodes"][1]
    assert document["health"]["held_bytes"] == held_bytes
    assert (document["state"], document["reason"], document["topology"]["zone"]) == ("ready", "registered", "a")


def test_images_have_their_size_and_where_they_are(cluster: Cluster) -> None:
    whole, half = cluster.table("images")
    assert list(whole) == ["image", "digest", "size", "copies", "in zones", "complete on", "other on", "pulled"]
    del whole["pulled"], half["pulled"]
    assert list(whole.values()) == [WHOLE, str(cluster.image.index.digest)[:19], "2.1 MB", "1", "a:1", "holding", "-"]
    assert [half[column] for column in ("image", "copies", "in zones", "complete on", "other on")] == [
        HALF,
        "0",
        "-",
        "-",
        "holding",
    ]
    document = cluster.json("images")["images"][0]
    assert (document["name"], document["complete_node_ids"]) == (WHOLE, ["holding"])
    assert (document["complete_by_zone"], document["content_bytes"]) == ({"a": 1}, cluster.image.pulled_bytes(AMD))


def test_a_digest_is_explained_for_a_host_that_lacks_it(cluster: Cluster) -> None:
    explained = cluster.json("explain", str(cluster.layers[1]), "--from", "asking")
    (candidate,) = explained["candidates"]
    assert (candidate["node"], candidate["tier"], candidate["rank"]) == ("holding", "region", 1)
    assert 0 < candidate["score"] <= 1
    assert candidate["components"].keys() >= {"heartbeat", "load", "outcomes"}
    assert (explained["reason"], explained["own"]) == ("the only holder", False)
    assert "first: holding: the only holder" in cluster.text("explain", str(cluster.layers[1]), "--from", "asking")


def test_a_host_that_has_a_digest_needs_nobody_to_serve_it(cluster: Cluster) -> None:
    explained = cluster.json("explain", str(cluster.layers[0]), "--from", "holding")
    assert (explained["own"], explained["candidates"]) == (True, [])
    assert "holding has it" in cluster.text("explain", str(cluster.layers[0]), "--from", "holding")
    whole = cluster.json("explain", WHOLE, "--from", "holding")
    assert {piece["served_by"] for piece in whole["pieces"]} == {"holding"}
    assert whole["upstream_bytes"] == 0


def test_without_a_host_all_holders_are_listed(cluster: Cluster) -> None:
    explained = cluster.json("explain", str(cluster.layers[0]))
    assert explained["holders"] == [
        {"node": "holding", "zone": "a", "size_bytes": cluster.image.blobs[AMD][1].size_bytes}
    ]
    (row,) = cluster.table("explain", str(cluster.layers[0]))
    assert (row["node"], row["state"], row["region/zone/rack"]) == ("holding", "ready", "-/a/r1")
    rows = cluster.table("explain", WHOLE)
    assert [row["what"] for row in rows] == ["index", f"manifest {AMD}", "config", "layer", "layer"]
    assert {row["held by"] for row in rows} == {"holding"}
    assert "served by" not in rows[0]


def test_each_piece_of_an_image_is_explained_with_what_is_missing_for_other_platforms(cluster: Cluster) -> None:
    whole = cluster.json("explain", WHOLE, "--from", "asking")
    parts = [cluster.image.index, cluster.image.manifests[AMD], *cluster.image.blobs[AMD]]
    assert [(piece["digest"], piece["size_bytes"], piece["served_by"]) for piece in whole["pieces"]] == [
        (str(part.digest), part.size_bytes, "holding") for part in parts
    ]
    assert (whole["upstream_bytes"], whole["platforms_missing"]) == (0, [ARM])
    said = cluster.text("explain", WHOLE, "--from", "asking")
    assert f"nothing would go upstream; nobody holds the image for {ARM}" in said
    by_digest = cluster.json("explain", f"reg.test/lib/app@{cluster.image.index.digest}", "--from", "asking")
    assert by_digest["pieces"] == whole["pieces"]


def test_an_image_of_which_only_the_index_is_held_goes_upstream(cluster: Cluster) -> None:
    explained = cluster.json("explain", HALF, "--from", "asking", code=1)
    assert [(piece["kind"], piece["served_by"]) for piece in explained["pieces"]] == [
        ("index", "holding"),
        ("manifest", "upstream"),
        ("manifest", "upstream"),
    ]
    assert explained["upstream_bytes"] == sum(part.size_bytes for part in cluster.half.manifests.values())
    said = cluster.text("explain", HALF, "--from", "asking", code=1)
    assert "2 of 3 would go upstream" in said
    assert f"what {str(cluster.half.manifests[ARM].digest)[:19]} lists is not known" in said


def test_what_nobody_holds_is_not_said_to_be_served(cluster: Cluster) -> None:
    nothing = f"sha256:{'0' * 64}"
    assert "nobody can serve it" in cluster.text("explain", nothing, "--from", "asking", code=1)
    assert "it comes from upstream" in cluster.text("explain", nothing, code=1)
    said = cluster.text("explain", f"reg.test/lib/app@{nothing}", "--from", "asking", code=1)
    assert "1 of 1 would go upstream (size not known)" in said
    assert "all of it would go upstream" in cluster.text("explain", "reg.test/lib/none:1", code=1)


@pytest.mark.parametrize(
    ("words", "code"), [(("sha256:no",), 2), (("a:1", "--from", "nobody"), 1), (("a:1", "--algorithm", "best"), 2)]
)
def test_mistakes_are_told_by_the_exit_code(cluster: Cluster, words: tuple[str, ...], code: int) -> None:
    assert cluster.text("explain", *words, code=code) == ""
