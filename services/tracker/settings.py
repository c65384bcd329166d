"""What an operator can tell the tracker."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from socket import gethostname

from pydantic import Field, field_validator, model_validator
from pydantic_settings import SettingsConfigDict

from stafett.common.cluster import Address
from stafett.common.settings import MetricsPort, ServiceSettings
from stafett.tracker.health_score import DEFAULT_WEIGHTS
from stafett.tracker.redis_link import RedisPlace

_WILDCARDS = ("0.0.0.0", "::")


class TrackerSettings(ServiceSettings):
    """Settings of `stafett tracker`."""

    model_config = SettingsConfigDict(frozen=True, extra="forbid", env_prefix="STAFETT_TRACKER_")

    metrics_port: MetricsPort = 7464
    listen_host: str = Field("127.0.0.1", min_length=1, description="IP address to listen on.")
    listen_port: int = Field(7460, ge=0, le=65535, description="TCP port to listen on, 0 to 65535; 0 picks a free one.")
    advertise_host: str = Field(
        "", description="Host under which the other trackers reach this one; empty: listen_host, or this host's name."
    )
    redis_url: str = Field(
        "redis://127.0.0.1:6379/0",
        description="Redis or Valkey (6.2 or newer): redis://[user:password@]host:port/db, rediss://... for TLS, or "
        "redis+sentinel://[user:password@]host:port,host:port/master-name/db.",
    )
    redis_authority: Path | None = Field(
        None,
        description="PEM file that Redis' certificate is checked by (rediss://), and Redis may ask for this part's "
        "certificate then; empty: the system's authorities.",
    )
    lease_ttl_seconds: float = Field(
        4.0, ge=0.5, le=60, description="Life of a node's lease after its last heartbeat, 0.5 to 60 seconds."
    )
    heartbeat_interval_seconds: float = Field(
        1.0, ge=0.1, le=20, description="Time between a node's heartbeats, 0.1 to 20 seconds; at most half the lease."
    )
    forget_after_seconds: float = Field(
        3600.0,
        ge=1,
        le=604800,
        description="A node that has been down for so long is forgotten with all it held, 1 to 604800 seconds.",
    )
    refresh_interval_seconds: float = Field(
        21600.0,
        ge=60,
        le=43200,
        description="Time between full announcements that a tracker asks of each node, 60 to 43200 seconds.",
    )

    score_weights: dict[str, float] = Field(
        default_factory=lambda: dict(DEFAULT_WEIGHTS),
        description="JSON map of weights in the health score, each 0 or more, for: " + ", ".join(DEFAULT_WEIGHTS) + ".",
    )

    @property
    def redis_place(self) -> RedisPlace:
        """Where Redis is, and the certificates for it."""
        return replace(RedisPlace.parse(self.redis_url), authority=self.redis_authority, identity=self.tls)

    def advertised(self, port: int) -> Address:
        """Where the other trackers reach this one, which listens on a port."""
        host = self.advertise_host or (gethostname() if self.listen_host in _WILDCARDS else self.listen_host)
        return Address(host, port)

    @field_validator("score_weights")
    @classmethod
    def _known_weights(cls, weights: dict[str, float]) -> dict[str, float]:
        unknown = sorted(weights.keys() - DEFAULT_WEIGHTS.keys())
        if unknown or any(weight < 0 for weight in weights.values()):
            raise ValueError(f"has unknown components ({', '.join(unknown)}) or a weight below 0")
        return {**DEFAULT_WEIGHTS, **weights}

    @field_validator("redis_url")
    @classmethod
    def _known_redis_url(cls, url: str) -> str:
        RedisPlace.parse(url)
        return url

    @model_validator(mode="after")
    def _lease_outlives_heartbeats(self) -> TrackerSettings:
        if self.heartbeat_interval_seconds * 2 > self.lease_ttl_seconds:
            raise ValueError("heartbeat_interval_seconds must be at most half of lease_ttl_seconds")
        return self
