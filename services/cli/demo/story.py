"""What has happened in the demo so far, and what is said of it at the end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from rich.filesize import decimal

from stafett.cli.demo.host_pull import HostPull


@dataclass
class Act:
    """One act: its pulls, and what was done to the cluster meanwhile."""

    title: str
    pulls: list[HostPull] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    @property
    def ended(self) -> bool:
        return bool(self.pulls) and not any(pull.running for pull in self.pulls)

    @property
    def seconds(self) -> float:
        """Until the last host had everything."""
        return max((pull.seconds for pull in self.pulls), default=0.0)

    @property
    def longest_gap_seconds(self) -> float:
        return max((pull.gaps.longest_seconds for pull in self.pulls), default=0.0)


@dataclass
class Story:
    """All acts that have begun. The first one is without Stafett, and does not count as its work."""

    store: str
    image_bytes: int
    acts: list[Act] = field(default_factory=list)
    frozen: str = ""
    killed: str = ""
    upstream_bytes: int = 0
    """Served by the registry since Stafett is there."""
    total_seconds: float = 0.0
    """Of all acts, and of starting everything."""

    @property
    def relayed(self) -> list[HostPull]:
        """The pulls with Stafett."""
        return [pull for act in self.acts[1:] for pull in act.pulls]

    @property
    def failed(self) -> int:
        return sum(bool(pull.error) for act in self.acts for pull in act.pulls)

    @property
    def digests_verified(self) -> int:
        return sum(pull.digests_verified for act in self.acts for pull in act.pulls)

    @property
    def gap_seconds(self) -> float:
        """The longest one of the act in which nodes fail."""
        return self.acts[2].longest_gap_seconds

    def document(self) -> dict[str, object]:
        """The last line of `--json`."""
        return {
            "store": self.store,
            "pulls": [
                {
                    "act": number,
                    "host": pull.host.name,
                    "seconds": round(pull.seconds, 2),
                    "bytes_local": pull.bytes_local,
                    "bytes_peer": pull.bytes_peer,
                    "bytes_upstream": pull.bytes_upstream,
                }
                for number, act in enumerate(self.acts[1:], 2)
                for pull in act.pulls
            ],
            "upstream_bytes": self.upstream_bytes,
            "image_bytes": self.image_bytes,
            "failed_pulls": self.failed,
            "failover": {
                "frozen": self.frozen,
                "killed": self.killed,
                "longest_gap_seconds": round(self.gap_seconds, 2),
            },
            "plain_seconds": round(self.acts[0].seconds, 2),
            "together_seconds": round(self.acts[1].seconds, 2),
            "longest_gap_seconds": round(self.gap_seconds, 2),
            "digests_verified": self.digests_verified,
            "total_seconds": round(self.total_seconds, 2),
        }

    def summary(self) -> list[str]:
        """The six lines at the end."""
        plain, together = self.acts[0].seconds, self.acts[1].seconds
        wanted = sum(len(pull.stage.digests) for act in self.acts for pull in act.pulls)
        return [
            f"{len(self.acts[1].pulls)} hosts at once: {plain:.1f} s without Stafett, {together:.1f} s with it",
            f"upstream copies with Stafett: {self.upstream_bytes / self.image_bytes:.2f} for {len(self.relayed)} pulls",
            f"longest gap while {self.frozen} froze and {self.killed} was killed: {self.gap_seconds:.2f} s",
            f"failed pulls: {self.failed}",
            f"digests verified: {self.digests_verified} of {wanted}",
            f"bytes came from: {_origins(self.relayed)}",
        ]


def _origins(pulls: Iterable[HostPull]) -> str:
    by_host: dict[str, Counter[str]] = {}
    for pull in pulls:
        origins = by_host.setdefault(pull.host.name, Counter())
        origins["its zone"] += pull.bytes_near
        origins["the other zone"] += pull.bytes_peer - pull.bytes_near
        origins["upstream"] += pull.bytes_upstream
    return "; ".join(
        f"{name}: " + ", ".join(f"{decimal(size)} {origin}" for origin, size in origins.items() if size)
        for name, origins in by_host.items()
    )
