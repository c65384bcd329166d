"""One host's pull in the demo: started in a thread, watched from outside, checked at the end."""

from __future__ import annotations

import asyncio
import subprocess
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from stafett.cli.demo.stage import IMAGE, Stage
from stafett.cli.local_cluster.cluster import Host
from stafett.cli.pull import pull
from stafett.common.blob_files import blob_path
from stafett.common.digest import Digest
from stafett.common.errors import StafettError

PULL_SECONDS = 120.0


@dataclass
class HostPull:
    """A pull that runs while the screen goes on."""

    stage: Stage
    host: Host
    seconds: float = 0.0
    error: str = ""
    bytes_upstream: int = 0
    by_source: Counter[str] = field(default_factory=Counter)
    gaps: GapWatch = field(init=False)

    def __post_init__(self) -> None:
        self.gaps = GapWatch(self.host.content_root / "ingest")
        self._upstream_before = self.stage.upstream_bytes()
        self._sources_before = self.stage.gateway_bytes(self.host)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    @property
    def running(self) -> bool:
        return self._thread.is_alive()

    @property
    def bytes_local(self) -> int:
        return self.by_source["local"]

    @property
    def bytes_peer(self) -> int:
        return sum(size for source, size in self.by_source.items() if source.startswith("peer_"))

    def look(self) -> None:
        """Read the counters and the files under way."""
        self.bytes_upstream = self.stage.upstream_bytes() - self._upstream_before
        self.by_source = self.stage.gateway_bytes(self.host) - self._sources_before
        self.gaps.look(time.monotonic())

    def verify(self) -> bool:
        """Read all content back from the host's store; tell whether every digest is right."""
        image = self.stage.image
        platform = self.stage.platform
        parts = (image.index, image.manifests[platform], *image.blobs[platform])
        return all(_intact(self.host.content_root, part.digest) for part in parts)

    def _run(self) -> None:
        started_at = time.monotonic()
        try:
            self._pull()
        except* (StafettError, OSError, subprocess.SubprocessError) as errors:
            self.error = str(errors.exceptions[0])
        self.seconds = time.monotonic() - started_at

    def _pull(self) -> None:
        if self.host.containerd is None:
            hosts = (self.host.gateway_url, self.stage.upstream_url, self.host.tag_url)
            layout, platform = self.host.content_root, self.stage.platform
            work = pull(
                IMAGE, hosts, layout, platform=platform, announce=lambda blobs: None, progress=lambda blob, size: None
            )
            asyncio.run(work)
            return
        # Fetched, not unpacked: the demo is about the way that bytes take.
        fetch = ("content", "fetch", "--hosts-dir", str(self.host.containerd.hosts_dir), "--platform")
        result = self.host.containerd.ctr(*fetch, self.stage.platform, IMAGE, timeout_seconds=PULL_SECONDS)
        if result.returncode:
            self.error = (result.stderr.strip() or f"ctr ended with {result.returncode}").splitlines()[-1]


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
