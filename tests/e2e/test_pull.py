"""Real containerds pull; the layers come from peers."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest
import trustme
import zstandard

from stafett.cli.configure.changing import carry_out
from stafett.cli.configure.hosts_toml import DEFAULT, Gateway, Registry
from stafett.cli.configure.mirror_files import changes_for, removals
from stafett.cli.local_cluster.cluster import Host
from stafett.cli.local_cluster.images import DOCKER, OCI, Format, MadeImage, make_image
from stafett.cli.local_cluster.parts import run
from stafett.cli.local_cluster.processes import free_port, wait_until
from stafett.common.digest import Digest
from tests.e2e.bed import PLATFORM, TWO_PLATFORMS, Bed, digests_of
from tests.e2e.cri import pull_image

pytestmark = [
    pytest.mark.needs_root,
    pytest.mark.needs_program("containerd"),
    pytest.mark.needs_program("docker-registry"),
]

ZSTD = dataclasses.replace(
    OCI, layer="application/vnd.oci.image.layer.v1.tar+zstd", compress=zstandard.ZstdCompressor().compress
)


def first_from_upstream_then_from_peers(bed: Bed, repository: str, image: MadeImage) -> None:
    first, second, third = bed.hosts
    bed.pull(first, image.name)
    bed.wait_held(first, digests_of(image))
    after_first = bed.upstream.bodies(repository)
    assert sum(access.size_bytes for access in after_first) == image.pulled_bytes(PLATFORM)
    bed.pull(second, image.name)
    bed.pull(third, image.name)
    assert bed.upstream.bodies(repository) == after_first
    for host in bed.hosts:
        bed.assert_complete(host, image)


@pytest.mark.parametrize(
    ("repository", "image_format", "seed"),
    [("pull/oci", OCI, 10), ("pull/docker", DOCKER, 11), ("pull/zstd", ZSTD, 12)],
)
def test_the_first_pull_goes_upstream_and_the_others_get_every_byte_from_peers(
    bed: Bed, repository: str, image_format: Format, seed: int
) -> None:
    image = bed.push_image(repository, image_format=image_format, seed=seed)
    first_from_upstream_then_from_peers(bed, repository, image)


def test_an_image_of_60_layers_comes_from_peers(bed: Bed) -> None:
    image = bed.push_image("pull/sixty", {PLATFORM: [40_000] * 60})
    first_from_upstream_then_from_peers(bed, "pull/sixty", image)


def test_kubelets_way_of_pulling_gets_every_byte_from_peers(bed: Bed) -> None:
    image = bed.push_image("pull/cri", seed=7)
    first, second, _ = bed.hosts
    pull_image(socket_of(first), image.name)
    bed.wait_held(first, digests_of(image))
    after_first = bed.upstream.bodies("pull/cri")
    pull_image(socket_of(second), image.name)
    assert bed.upstream.bodies("pull/cri") == after_first
    bed.assert_complete(second, image)


def test_imported_content_is_served_though_it_carries_no_distribution_labels(bed: Bed) -> None:
    image = bed.push_image("pull/imported", seed=8)
    first, second, _ = bed.hosts
    assert first.containerd is not None
    layout = bed.layouts / "pull-imported" / "1-8"
    archive = layout.with_suffix(".tar")
    assert run(["tar", "-cf", archive, "-C", layout, "."]).returncode == 0
    imported = first.containerd.ctr("images", "import", "--all-platforms", str(archive))
    assert imported.returncode == 0, imported.stderr
    bed.wait_held(first, digests_of(image))
    bed.pull(second, image.name)
    assert bed.upstream.bodies("pull/imported") == []


@pytest.mark.needs_program("skopeo")
def test_skopeo_copies_a_whole_image_from_a_gateway(bed: Bed) -> None:
    image = bed.push_image("pull/skopeo", seed=9)
    first, second, _ = bed.hosts
    bed.pull(first, image.name)
    bed.wait_held(first, digests_of(image))
    before = bed.upstream.bodies("pull/skopeo")
    source = f"docker://127.0.0.1:{second.gateway_port}/reg.test/pull/skopeo@{image.manifests[PLATFORM].digest}"
    target = bed.layouts / "skopeo-target"
    copied = run(["skopeo", "copy", "--src-tls-verify=false", source, f"dir:{target}"])
    assert copied.returncode == 0, copied.stderr
    for layer in image.blobs[PLATFORM]:
        assert (target / layer.digest.hex).stat().st_size == layer.size_bytes
    assert bed.upstream.bodies("pull/skopeo") == before


@pytest.mark.needs_program("podman")
def test_podman_pulls_from_a_gateway(bed: Bed) -> None:
    image = bed.push_image("pull/podman", seed=13)
    first, second, _ = bed.hosts
    bed.pull(first, image.name)
    bed.wait_held(first, digests_of(image))
    before = bed.upstream.bodies("pull/podman")
    stores = bed.layouts / "podman"
    podman: list[str | Path] = [
        "podman",
        "--root",
        stores / "root",
        "--runroot",
        stores / "run",
        "--storage-driver",
        "vfs",
    ]
    name = f"127.0.0.1:{second.gateway_port}/reg.test/pull/podman@{image.manifests[PLATFORM].digest}"
    pulled = run([*podman, "--storage-driver", "vfs", "pull", "--tls-verify=false", name])
    assert pulled.returncode == 0, pulled.stderr
    assert bed.upstream.bodies("pull/podman") == before


@pytest.mark.needs_program("skopeo")
def test_skopeo_copies_an_empty_layer_too(own_bed: Bed) -> None:
    own_bed.start(1)
    (asking,) = own_bed.hosts
    holding = own_bed.cluster.add_host("layout")
    empty = dataclasses.replace(OCI, compress=lambda tar: b"")
    image = make_image(holding.content_root, "reg.test/pull/empty:1", {PLATFORM: [10]}, image_format=empty)
    own_bed.start_stafett(holding)
    own_bed.wait_held(holding, digests_of(image))
    source = f"docker://127.0.0.1:{asking.gateway_port}/reg.test/pull/empty@{image.index.digest}"
    target = own_bed.layouts / "target"
    copied = run(["skopeo", "copy", "--src-tls-verify=false", source, f"dir:{target}"])
    assert copied.returncode == 0, copied.stderr
    assert (target / Digest.of(b"").hex).read_bytes() == b""


def test_a_pushed_again_tag_is_seen_at_once_while_upstream_lives(bed: Bed) -> None:
    first, second, _ = bed.hosts
    old = bed.push_image("pull/moving", seed=1)
    bed.pull(first, old.name)
    bed.wait_held(first, digests_of(old))
    new = bed.push_image("pull/moving", seed=2)
    bed.pull(second, new.name)
    assert second.containerd is not None
    listed = second.containerd.ctr("images", "ls", f"name=={new.name}").stdout
    assert str(new.index.digest) in listed
    bed.assert_complete(second, new)


def test_with_upstream_stopped_an_image_is_pulled_by_tag_and_by_digest(bed: Bed) -> None:
    image = bed.push_image("pull/offline", seed=3)
    first, second, third = bed.hosts
    bed.pull(first, image.name)
    bed.wait_held(first, digests_of(image))
    bed.wait_tagged(image.name)
    bed.upstream.stop()
    try:
        bed.pull(second, image.name)
        bed.pull(third, f"reg.test/pull/offline@{image.index.digest}")
    finally:
        bed.upstream.start(bed.cluster.processes)
    bed.assert_complete(second, image)
    bed.assert_complete(third, image)


def test_what_upstream_does_not_know_is_not_found(bed: Bed) -> None:
    containerd = bed.hosts[0].containerd
    assert containerd is not None
    result = containerd.pull(f"{bed.upstream.registry}/pull/nothing:1")
    assert result.returncode != 0
    assert "not found" in result.stderr


def test_what_upstream_does_not_know_any_more_is_not_found_though_peers_have_it(bed: Bed) -> None:
    image = bed.push_image("pull/forgotten", seed=15)
    bed.pull(bed.hosts[0], image.name)
    bed.wait_tagged(image.name)
    bed.upstream.delete("pull/forgotten", image.index.digest)
    containerd = bed.hosts[1].containerd
    assert containerd is not None
    result = containerd.pull(image.name)
    assert result.returncode != 0
    assert "not found" in result.stderr
    bed.pull(bed.hosts[1], f"reg.test/pull/forgotten@{image.index.digest}")


def test_what_upstream_refuses_is_refused_though_peers_have_it(bed: Bed) -> None:
    image = bed.push_image("pull/private", seed=5)
    bed.pull(bed.hosts[0], image.name)
    bed.wait_tagged(image.name)
    containerd = bed.hosts[1].containerd
    assert containerd is not None
    try:
        restart_upstream(bed, private=True)
        result = containerd.pull(image.name)
    finally:
        restart_upstream(bed, private=False)
    assert result.returncode != 0
    assert "authorization failed" in result.stderr or "401" in result.stderr, result.stderr


def test_a_removed_image_is_withdrawn(bed: Bed) -> None:
    image = bed.push_image("pull/removed", {PLATFORM: [300_000]}, seed=4)
    first, second, _ = bed.hosts
    bed.pull(first, image.name)
    bed.wait_held(first, digests_of(image))
    assert first.containerd is not None
    assert first.containerd.ctr("images", "rm", "--sync", image.name).returncode == 0
    layer = image.blobs[PLATFORM][1]
    path = first.content_root / "blobs" / "sha256" / layer.digest.hex
    wait_until(lambda: not path.exists(), "garbage collection of the layer")
    bed.pull(second, image.name)
    bed.assert_complete(second, image)


def test_a_killed_tracker_replica_and_a_dead_proxy_change_nothing(own_bed: Bed) -> None:
    dead = {"http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9", "HTTP_PROXY": "http://127.0.0.1:9"}
    own_bed.start(2, gateway_environment=dead)
    first, second = own_bed.hosts
    image = own_bed.push_image("pull/replica", TWO_PLATFORMS)
    own_bed.pull(first, image.name)
    own_bed.wait_held(first, digests_of(image))
    after_first = own_bed.upstream.bodies("pull/replica")
    own_bed.cluster.trackers[0].process.kill()
    own_bed.pull(second, image.name)
    assert own_bed.upstream.bodies("pull/replica") == after_first


def test_with_all_of_stafett_stopped_the_pull_goes_upstream(own_bed: Bed) -> None:
    own_bed.start(1)
    (host,) = own_bed.hosts
    image = own_bed.push_image("pull/alone")
    stop_stafett(own_bed, host)
    own_bed.pull(host, image.name)
    own_bed.assert_complete(host, image)


@pytest.mark.parametrize(
    ("own", "listed"),
    [
        ("file", "reg.test"),
        ("certificates", "reg.test"),
        ("file for all", "reg.test"),
        ("certificates for all", "reg.test"),
        ("file for all", DEFAULT),
    ],
)
def test_what_the_operator_had_said_holds_for_pulls_through_the_gateway(
    own_bed: Bed, tmp_path: Path, own: str, listed: str
) -> None:
    """The registry speaks TLS, with a certificate that only the operator's file or folder makes containerd believe."""
    own_bed.upstream.certified = tmp_path
    certify(tmp_path)
    own_bed.start(2)
    first, second = own_bed.hosts
    image = own_bed.push_image("pull/merged", {PLATFORM: [300_000]})
    for host in own_bed.hosts:
        assert host.containerd is not None
        root = host.containerd.hosts_dir
        carry_out(root, removals(root))
        (folder := root / ("_default" if own.endswith("for all") else own_bed.upstream.registry)).mkdir()
        shutil.copy(tmp_path / "ca.crt", folder)
        if own.startswith("file"):
            (folder / "ca.crt").rename(folder / "corp.pem")
            (folder / "hosts.toml").write_text(
                OWN.format(url=own_bed.upstream.url, dead=f"http://127.0.0.1:{free_port()}")
            )
        wanted = [Registry(listed, own_bed.upstream.url)]
        carry_out(root, changes_for(root, wanted, Gateway(host.gateway_url, host.tag_url)))
    own_bed.pull(first, image.name)
    own_bed.wait_held(first, digests_of(image))
    after_first = own_bed.upstream.bodies("pull/merged")
    assert after_first
    own_bed.pull(second, image.name)
    assert own_bed.upstream.bodies("pull/merged") == after_first
    own_bed.assert_complete(second, image)


OWN = """\
server = "{url}"
ca = "corp.pem"
[host]
  "{dead}" = {{ capabilities = ["pull", "resolve"] }}
  "{url}" = {{ capabilities = ["pull"], skip_verify = false }}
"""


def certify(folder: Path) -> None:
    """Make an authority, and a certificate of it for loopback."""
    authority = trustme.CA()
    server = authority.issue_cert("127.0.0.1")
    authority.cert_pem.write_to_path(folder / "ca.crt")
    server.private_key_pem.write_to_path(folder / "server.key")
    for blob in server.cert_chain_pems:
        blob.write_to_path(folder / "server.pem", append=True)


def restart_upstream(bed: Bed, *, private: bool) -> None:
    bed.upstream.stop()
    bed.upstream.private = private
    bed.upstream.start(bed.cluster.processes)


def stop_stafett(bed: Bed, host: Host) -> None:
    for process in (host.gateway, host.node, *(tracker.process for tracker in bed.cluster.trackers)):
        assert process is not None
        process.stop()


def socket_of(host: Host) -> str:
    assert host.containerd is not None
    return str(host.containerd.socket)


def test_a_corrupted_copy_costs_one_attempt_at_most_and_is_withdrawn(bed: Bed) -> None:
    image = bed.push_image("pull/corrupted", {PLATFORM: [3_000_000]}, seed=14)
    first, second, _ = bed.hosts
    bed.pull(first, image.name)
    bed.wait_held(first, digests_of(image))
    layer = image.blobs[PLATFORM][1]
    path = first.content_root / "blobs" / "sha256" / layer.digest.hex
    damaged = bytearray(path.read_bytes())
    damaged[1_000_000] ^= 1
    path.chmod(0o644)
    path.write_bytes(damaged)
    assert second.containerd is not None
    second.containerd.pull(image.name, "--platform", PLATFORM)  # may fail, once
    ingests = second.content_root / "ingest"
    wait_until(lambda: not any(ingests.iterdir()), "containerd has dropped the failed download")
    bed.pull(second, image.name)
    bed.assert_complete(second, image)
    wait_until(lambda: first.name not in bed.holders(layer.digest), "the corrupted copy is withdrawn")
