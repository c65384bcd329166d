"""One host's pull in the demo: a process of its own, watched from outside, checked at the end."""

from __future__ import annotations

import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from stafett.cli.demo.stage import IMAGE, Stage
from stafett.cli.local_cluster.cluster import Host
from stafett.common.blob_files import blob_path
from stafett.common.digest import Digest

PULL_SECONDS = 120.0


@dataclass
class HostPull:
    """A pull that runs while the screen goes on; `look` keeps it up to date."""

    stage: Stage
    host: Host
    running: bool = True
    seconds: float = 0.0
    error: str = ""
    bytes_upstream: int = 0
    by_source: Counter[str] = field(default_factory=Counter)
    gaps: GapWatch = field(init=False)

    def __post_init__(self) -> None:
        self.gaps = GapWatch(self.host.content_root / "ingest")
        self._upstream_before = self.stage.upstream_bytes()
        self._sources_before = self.stage.gateway_bytes(self.host)
        self._started_at = time.monotonic()
        self._process = self.stage.cluster.processes.start(f"pull-{self.host.name}", self._command())

    @property
    def bytes_local(self) -> int:
        return self.by_source["local"]

    @property
    def bytes_peer(self) -> int:
        return sum(size for source, size in self.by_source.items() if source.startswith("peer_"))

    def look(self) -> None:
        """Read the counters and the files under way, and whether the pull goes on."""
        self.bytes_upstream = self.stage.upstream_bytes() - self._upstream_before
        self.by_source = self.stage.gateway_bytes(self.host) - self._sources_before
        now = time.monotonic()
        self.gaps.look(now)
        if not self.running:
            return
        if now - self._started_at > PULL_SECONDS:
            self._process.kill()
        if not self._process.alive:
            self.running = False
            self.seconds = now - self._started_at
            if self._process.popen.returncode:
                self.error = self._process.log_tail(1) or "it did not end in time"

    def verify(self) -> bool:
        """Read all content back from the host's store; tell whether every digest is right."""
        image = self.stage.image
        platform = self.stage.platform
        parts = (image.index, image.manifests[platform], *image.blobs[platform])
        return all(_intact(self.host.content_root, part.digest) for part in parts)

    def _command(self) -> list[str | Path]:
        platform = self.stage.platform
        if self.host.containerd is None:
            command: list[str | Path] = [sys.executable, "-m", "stafett", "pull", IMAGE]
            for url in (self.host.gateway_url, self.stage.upstream_url, self.host.tag_url):
                command += ["--via", url]
            return [*command, "--to", self.host.content_root, "--platform", platform]
        # Fetched, not unpacked: the demo is about the way that bytes take.
        fetch = ("content", "fetch", "--hosts-dir", str(self.host.containerd.hosts_dir), "--platform", platform, IMAGE)
        return self.host.containerd.ctr_command(*fetch)


@dataclass
class GapWatch:
    """Longest time that a blob under way did not grow, by the files that the store receives into."""

    ingest: Path
    longest_seconds: float = 0.0
    _seen: dict[Path, tuple[int, float]] = field(default_factory=dict)

    def look(self, now: float) -> None:
        """Look at all files under way; a gap counts while it lasts, also if it never ends."""
        for path in self.ingest.glob("**/*"):
            try:
                size = path.stat().st_size
            except OSError:
                continue
            if path.is_dir() or path.name in ("ref", "startedat", "updatedat", "total") or size == 0:
                continue
            last_size, grown_at = self._seen.get(path, (0, now))
            if size > last_size:
                self._seen[path] = (size, now)
            self.longest_seconds = max(self.longest_seconds, now - grown_at)


def _intact(root: Path, digest: Digest) -> bool:
    try:
        return Digest.of(blob_path(root, digest).read_bytes()) == digest
    except OSError:
        return False
