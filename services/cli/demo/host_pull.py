"""One host's pull in the demo: a process of its own, watched from outside, checked at the end."""

from __future__ import annotations

import os
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from stafett.cli.demo.stage import IMAGE, Stage
from stafett.cli.local_cluster.cluster import Host
from stafett.common.blob_files import blob_path
from stafett.common.digest import Digest
from stafett.common.oci_layout import SIZE_NOTE

PULL_SECONDS = 120.0
CONTAINERD_NOTES = ("ref", "startedat", "updatedat", "total")
"""What containerd keeps beside the data of a download."""


@dataclass
class HostPull:
    """A pull that runs while the screen goes on; `look` keeps it up to date. `plain`: straight from the registry."""

    stage: Stage
    host: Host
    plain: bool = False
    running: bool = True
    seconds: float = 0.0
    error: str = ""
    bytes_stored: int = 0
    digests_verified: int = 0
    by_source: Counter[str] = field(default_factory=Counter)
    gaps: GapWatch = field(init=False)

    def __post_init__(self) -> None:
        self.gaps = GapWatch(self.host.content_root / "ingest")
        self._sources_before = self.stage.gateway_bytes(self.host)
        self._started_at = time.monotonic()
        self._process = self.stage.cluster.processes.start(f"pull-{self.host.name}", self._command())

    @property
    def bytes_local(self) -> int:
        return self.by_source["local"]

    @property
    def bytes_peer(self) -> int:
        return sum(size for source, size in self.by_source.items() if source.startswith("peer_"))

    @property
    def bytes_near(self) -> int:
        """Bytes from peers in the same zone."""
        return self.by_source["peer_rack"] + self.by_source["peer_zone"]

    @property
    def bytes_upstream(self) -> int:
        """What the store has and the gateway did not send."""
        return max(0, self.bytes_stored - self.bytes_peer - self.bytes_local)

    def look(self) -> None:
        """Read the counters and the files under way, and whether the pull goes on; check all digests at its end."""
        if not self.running:
            return
        if not self.plain:
            self.by_source = self.stage.gateway_bytes(self.host) - self._sources_before
        now = time.monotonic()
        self.bytes_stored = self.gaps.look(now) + self._completed_bytes()
        if now - self._started_at > PULL_SECONDS:
            self._process.kill()
        if not self._process.alive:
            self.running = False
            self.seconds = now - self._started_at
            if self._process.popen.returncode:
                self.error = self._process.log_tail(1) or "it did not end in time"
            self._verify()

    def _completed_bytes(self) -> int:
        paths = (blob_path(self.host.content_root, digest) for digest in self.stage.digests)
        return sum(path.stat().st_size for path in paths if path.exists())

    def _verify(self) -> None:
        """Read all content back from the host's store."""
        self.digests_verified = sum(_intact(self.host.content_root, digest) for digest in self.stage.digests)
        if not self.error and self.digests_verified != len(self.stage.digests):
            self.error = "a digest is wrong, or missing"

    def _command(self) -> list[str | Path]:
        platform, host, upstream = self.stage.platform, self.host, self.stage.upstream_url
        if host.containerd is None:
            command: list[str | Path] = [sys.executable, "-m", "stafett", "pull", IMAGE]
            for url in [upstream] if self.plain else [host.gateway_url, upstream, host.tag_url]:
                command += ["--via", url]
            return [*command, "--to", host.content_root, "--platform", platform]
        hosts_dir = host.containerd.hosts_dir
        if self.plain:
            hosts_dir = host.directory / "plain"
            folder = hosts_dir / IMAGE.partition("/")[0]
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "hosts.toml").write_text(f'[host."{upstream}"]\ncapabilities = ["pull", "resolve"]\n')
        # Fetched, not unpacked: the demo is about the way that bytes take.
        fetch = ("content", "fetch", "--hosts-dir", str(hosts_dir), "--platform", platform, IMAGE)
        return host.containerd.ctr_command(*fetch)


@dataclass
class GapWatch:
    """Longest time that a blob under way did not grow, by the files that the store receives into."""

    ingest: Path
    longest_seconds: float = 0.0
    _seen: dict[Path, tuple[int, float]] = field(default_factory=dict)

    def look(self, now: float) -> int:
        """Look at all files under way, and sum them up; a gap counts while it lasts, also if it never ends."""
        total = 0
        for folder, _, names in os.walk(self.ingest):
            for name in names:
                if name not in CONTAINERD_NOTES and not name.endswith(SIZE_NOTE):
                    total += self._look_at(Path(folder, name), now)
        return total

    def _look_at(self, path: Path, now: float) -> int:
        """Take the size of a file that may be gone, or not begun; return it."""
        try:
            size = path.stat().st_size
        except OSError:
            return 0
        last_size, grown_at = self._seen.get(path, (0, now))
        if size > last_size:
            self._seen[path] = (size, now)
        if size:
            self.longest_seconds = max(self.longest_seconds, now - grown_at)
        return size


def _intact(root: Path, digest: Digest) -> bool:
    try:
        return Digest.of(blob_path(root, digest).read_bytes()) == digest
    except OSError:
        return False
