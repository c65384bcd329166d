"""What is measured against each other: a peer hit, docker-registry serving directly, nginx in front of nginx.

All three end in the same kind of file with the same bytes in the page cache, and each is asked for it by HTTP.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from stafett.cli.local_cluster.cluster import LocalCluster
from stafett.cli.local_cluster.containerd import Containerd, containerd_available
from stafett.cli.local_cluster.processes import Process, Processes, accepts_connections, free_port
from stafett.common import oci, oci_layout
from stafett.common.blob_files import blob_path
from stafett.common.digest import Digest
from stafett.common.errors import StartupFailed
from stafett.common.oci import Descriptor
from tests.e2e.upstream import Upstream

REGISTRY = "reg.test"
REPOSITORY = "bench/blob"
_PIECE_BYTES = 4 * 1024 * 1024
_NGINX_COMMON = """\
daemon off;
master_process off;
pid {directory}/nginx.pid;
error_log stderr warn;
events {{}}
http {{
  access_log off;
  sendfile on;
  client_body_temp_path {directory}/body;
  proxy_temp_path {directory}/proxy;
  fastcgi_temp_path {directory}/fastcgi;
  uwsgi_temp_path {directory}/uwsgi;
  scgi_temp_path {directory}/scgi;
  server {{ listen 127.0.0.1:{port}; {server} }}
}}
"""


@dataclass(frozen=True)
class Subject:
    """Somebody who serves the blob: where, and the processes that take part by their role."""

    name: str
    port: int
    path: str
    processes: Mapping[str, Process]


def make_blob(layout: Path, size_bytes: int) -> Digest:
    """Make an image with a single layer of random bytes in a layout; return the layer's digest."""
    oci_layout.ensure_layout(layout)
    unnamed = layout / "ingest" / "blob"
    running = hashlib.sha256()
    with unnamed.open("wb") as output:
        for _ in range(0, size_bytes, _PIECE_BYTES):
            piece = os.urandom(min(_PIECE_BYTES, size_bytes - output.tell()))
            output.write(piece)
            running.update(piece)
    layer = Descriptor(oci.OCI_LAYER_GZIP, Digest(running.hexdigest()), size_bytes)
    unnamed.rename(blob_path(layout, layer.digest))
    config = _write_json(layout, oci.OCI_CONFIG, {"os": "linux", "architecture": "amd64", "rootfs": {"type": "layers"}})
    document = {
        "schemaVersion": 2,
        "mediaType": oci.OCI_MANIFEST,
        "config": _entry(config),
        "layers": [_entry(layer)],
    }
    manifest = _write_json(layout, oci.OCI_MANIFEST, document)
    oci_layout.add_image(layout, f"{REGISTRY}/{REPOSITORY}:1", manifest)
    return layer.digest


def start_peers(cluster: LocalCluster, layout: Path, digest: Digest) -> Subject:
    """Start a holder (node) and a reader (gateway, and a node of its own that lacks the blob).

    The holder takes the layout over: into its containerd where it has one, else as it is.
    """
    cluster.start_redis()
    tracker = cluster.start_tracker()
    holder = cluster.add_host("holder", zone="a", rack="a1", containerd=containerd_available())
    if holder.containerd:
        _import(cluster, holder.containerd, layout)
        shutil.rmtree(layout)
    else:
        shutil.rmtree(holder.content_root)
        layout.rename(holder.content_root)
    node = cluster.start_node(holder)
    reader = cluster.add_host("reader", zone="a", rack="a2")
    cluster.start_node(reader)
    gateway = cluster.start_gateway(reader)
    processes = {"gateway": gateway, "node": node, "tracker": tracker.process}
    path = f"/v2/{REPOSITORY}/blobs/{digest}?ns={REGISTRY}"
    return Subject("peer", reader.gateway_port, path, processes)


def start_registry(upstream: Upstream, processes: Processes, blob: Path) -> Subject | None:
    """Start docker-registry on the very file of the blob, or None where it is not installed."""
    if shutil.which("docker-registry") is None:
        return None
    digest = Digest(blob.name)
    root = upstream.directory / "data" / "docker" / "registry" / "v2"
    content = root / "blobs" / "sha256" / digest.hex[:2] / digest.hex
    link = root / "repositories" / REPOSITORY / "_layers" / "sha256" / digest.hex
    content.mkdir(parents=True)
    link.mkdir(parents=True)
    os.link(blob, content / "data")
    (link / "link").write_text(str(digest))
    upstream.start(processes)
    assert upstream.process is not None
    return Subject("registry", upstream.port, f"/v2/{REPOSITORY}/blobs/{digest}", {"registry": upstream.process})


def start_nginx(processes: Processes, directory: Path, blob: Path) -> Subject | None:
    """Start an nginx that passes on what another nginx serves, or None where it is not installed.

    One process each. The proxy buffers as by default, but in memory only: its default would write most of a fast blob
    to a temporary file.
    """
    if shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin") is None:
        return None
    web_root = directory / "www"
    web_root.mkdir(parents=True)
    os.link(blob, web_root / "blob")
    web_root.chmod(0o755)
    origin, origin_port = _start_nginx(processes, directory / "origin", f"root {web_root};")
    forward = f"location / {{ proxy_pass http://127.0.0.1:{origin_port}; proxy_max_temp_file_size 0; }}"
    proxy, proxy_port = _start_nginx(processes, directory / "proxy", forward)
    return Subject("nginx_proxy", proxy_port, "/blob", {"nginx proxy": proxy, "nginx origin": origin})


def _start_nginx(processes: Processes, directory: Path, server: str) -> tuple[Process, int]:
    directory.mkdir()
    port = free_port()
    config = directory / "nginx.conf"
    config.write_text(_NGINX_COMMON.format(directory=directory, port=port, server=server))
    program = shutil.which("nginx") or "/usr/sbin/nginx"
    command: list[str | Path] = [program, "-p", directory, "-c", config, "-e", "stderr"]
    return processes.start(f"nginx-{directory.name}", command, ready=lambda: accepts_connections(port)), port


def _import(cluster: LocalCluster, containerd: Containerd, layout: Path) -> None:
    """Give the image to a containerd in the ordinary way."""
    archive = cluster.directory / "image.tar"
    with tarfile.open(archive, "w") as tar:
        for name in ("oci-layout", "index.json", "blobs"):
            tar.add(layout / name, arcname=name)
    result = containerd.ctr("images", "import", "--no-unpack", "--all-platforms", str(archive))
    archive.unlink()
    if result.returncode != 0:
        raise StartupFailed(f"ctr images import: {result.stderr}")


def _entry(descriptor: Descriptor) -> dict[str, object]:
    return {"mediaType": descriptor.media_type, "digest": str(descriptor.digest), "size": descriptor.size_bytes}


def _write_json(layout: Path, media_type: str, document: object) -> Descriptor:
    content = json.dumps(document).encode()
    digest = Digest.of(content)
    blob_path(layout, digest).write_bytes(content)
    return Descriptor(media_type, digest, len(content))
