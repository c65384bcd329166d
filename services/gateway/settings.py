"""What a gateway can be told."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Literal

from pydantic import Field, field_validator
from pydantic_settings import SettingsConfigDict

from stafett.common.cluster import Address
from stafett.common.settings import HostSettings, MetricsPort, Words


class GatewaySettings(HostSettings):
    """Settings of `stafett gateway`, from STAFETT_GATEWAY_* or options."""

    model_config = SettingsConfigDict(env_prefix="STAFETT_GATEWAY_")

    metrics_port: MetricsPort = 7466
    listen_port: int = Field(7462, ge=0, le=65535, description="Mirror port on loopback; 0 picks a free one.")
    tag_port: int = Field(
        7463, ge=0, le=65535, description="Port that also answers tags, while upstream is dead; 0 picks a free one."
    )
    node_target: str = Field("127.0.0.1:7461", description="host:port of this host's node.")
    content_root: str = Field(
        "", description="Folder above blobs/sha256 of this host's store; empty reads own content through the node."
    )
    default_registry: str = Field(
        "docker.io", description="Registry meant by clients that name none, neither by ns= nor in the path."
    )
    tags: Literal["upstream", "peers"] = Field(
        "upstream", description="Who answers tags on the mirror port: nobody (upstream does), or what peers hold."
    )
    allow: Words = Field(("*",), description='Patterns of served "registry/repository" names, comma separated.')
    deny: Words = Field(
        (), description='Patterns of "registry/repository" names that are never served, comma separated.'
    )
    upstream_urls: dict[str, str] = Field(
        default_factory=dict,
        description='JSON map from registry to base URL, where it is not "https://<registry>"; used by the tag port.',
    )
    upstream_proxy: str = Field("", description="HTTP proxy URL for asking whether upstream lives; empty: none.")
    selection: Literal["nearest", "least-loaded", "rendezvous"] = Field(
        "nearest", description="How a holder is chosen: by topology and cost, by open streams, or the same for all."
    )
    follow: bool = Field(
        True,
        description="Share blobs while they are being received, and let one host of all fetch them from upstream; "
        "false: only complete blobs are shared.",
    )
    stall_timeout_seconds: float = Field(
        1.0,
        ge=0.1,
        le=60,
        description="Seconds of silence after which a holder is left; longer where its frames come slowly.",
    )
    max_requests: int = Field(1024, ge=1, le=65536, description="Requests served at once; more get 503.")
    stop_grace_seconds: int = Field(
        20, ge=0, le=600, description="Seconds that running responses get to finish after SIGTERM."
    )

    @field_validator("node_target")
    @classmethod
    def _node_target(cls, value: str) -> str:
        host, colon, port = value.rpartition(":")
        if not colon or not host or not port.isdigit() or not 0 < int(port) < 65536:
            raise ValueError("must be host:port")
        return value

    def serves(self, image: str) -> bool:
        """Tell whether the lists let "registry/repository" be served."""
        allowed = any(fnmatchcase(image, pattern) for pattern in self.allow)
        return allowed and not any(fnmatchcase(image, pattern) for pattern in self.deny)

    @property
    def node_address(self) -> Address:
        """Address of this host's node."""
        host, _, port = self.node_target.rpartition(":")
        return Address(host.strip("[]"), int(port))
