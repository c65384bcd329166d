"""The upstream registry of the tests: Debian's docker-registry (CNCF distribution) on loopback, with its access log."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

import httpx2

from stafett.cli.local_cluster.processes import HERE, LOOPBACK, Place, Process, Processes, free_port
from stafett.cli.local_cluster.upload import upload_image
from stafett.common.digest import Digest
from stafett.common.oci import Descriptor

_CONFIG = """\
version: 0.1
log: {{accesslog: {{disabled: false}}, level: warn}}
storage:
  filesystem: {{rootdirectory: "{directory}"}}
  delete: {{enabled: true}}
http:
  addr: {address}:{port}
"""
_TLS = '  tls: {{certificate: "{folder}/server.pem", key: "{folder}/server.key"}}\n'
_AUTH = 'auth: {{htpasswd: {{realm: upstream, path: "{path}"}}}}\n'
_ACCESS = re.compile(r'"(GET|HEAD) (/v2/\S*) HTTP/1\.1" (\d+) (\d+)')


@dataclass(frozen=True)
class Access:
    """One served request of the access log."""

    method: str
    path: str
    status: int
    size_bytes: int


@dataclass
class Upstream:
    """A registry that can be stopped and started again on its port; `registry` is the name that images use for it."""

    directory: Path
    registry: str = "reg.test"
    port: int = field(default_factory=free_port)
    address: str = LOOPBACK
    place: Place = HERE
    process: Process | None = None
    private: bool = False
    """Whether it answers 401 to everybody, from its next start on."""
    certified: Path | None = None
    """Folder with server.pem and server.key, to speak TLS with, and ca.crt, whom clients have to believe."""

    @property
    def url(self) -> str:
        return f"http{'s' if self.certified else ''}://{self.address}:{self.port}"

    def start(self, processes: Processes) -> None:
        """Start it (again)."""
        self.directory.mkdir(parents=True, exist_ok=True)
        config = self.directory / "config.yml"
        text = _CONFIG.format(directory=self.directory / "data", address=self.address, port=self.port)
        text += _TLS.format(folder=self.certified) if self.certified else ""
        if self.private:
            nobody = self.directory / "htpasswd"
            nobody.write_text("# nobody\n")
            text += _AUTH.format(path=nobody)
        config.write_text(text)
        command: list[str | Path] = [*self.place.prefix, "docker-registry", "serve", config]
        self.process = processes.start(
            f"upstream-{self.port}", command, ready=lambda: self.place.listens(self.port, self.address)
        )

    def stop(self) -> None:
        """Stop it; what it stores stays."""
        assert self.process is not None
        self.process.stop()

    def accesses(self, repository: str) -> list[Access]:
        """Requests served below one repository so far."""
        assert self.process is not None
        found = _ACCESS.findall(self.process.log.read_text("utf-8", "replace"))
        return [
            Access(method, path.partition("?")[0], int(status), int(size))
            for method, path, status, size in found
            if path.startswith(f"/v2/{repository}/")
        ]

    def bodies(self, repository: str) -> list[Access]:
        """Requests that moved content: everything but HEADs and errors."""
        return [access for access in self.accesses(repository) if access.method == "GET" and access.status < 300]

    def delete(self, repository: str, digest: Digest) -> None:
        """Forget a manifest, and the tags that mean it."""
        answer = httpx2.delete(f"{self.url}/v2/{repository}/manifests/{digest}", trust_env=False)
        assert answer.status_code == 202, answer.text

    def push(self, layout: Path, name: str, target: Descriptor) -> None:
        """Upload an image from a layout: blobs, manifests, then the tag."""
        upload_image(self.url, layout, name, target, self.certified / "ca.crt" if self.certified else None)
