"""What a node can be told."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator
from pydantic_settings import SettingsConfigDict

from stafett.common.settings import HostSettings, MetricsPort, Words


class NodeSettings(HostSettings):
    """Settings of `stafett node`, from STAFETT_NODE_* or options."""

    model_config = SettingsConfigDict(env_prefix="STAFETT_NODE_")

    metrics_port: MetricsPort = 7465
    listen_host: str = Field("127.0.0.1", min_length=1, description="Address that the node's gRPC service listens on.")
    listen_port: int = Field(7461, ge=0, le=65535, description="Port of the gRPC service; 0 picks a free one.")
    advertise_host: str = Field("", description="Host that peers connect to; empty: listen_host.")
    advertise_port: int = Field(0, ge=0, le=65535, description="Port that peers connect to; 0: the listening one.")
    labels: dict[str, str] = Field(default_factory=dict, description="JSON map of free labels, shown to operators.")
    store: Literal["containerd", "oci-layout"] = Field("containerd", description="Where content comes from.")
    containerd_socket: Path = Field(
        Path("/run/containerd/containerd.sock"), description="containerd's gRPC socket (store=containerd)."
    )
    content_root: Path | None = Field(
        None,
        description="Folder above blobs/sha256: the layout directory, or containerd's content root "
        "(<root>/io.containerd.content.v1.content); empty reads blobs through containerd's API.",
    )
    namespaces: Words = Field(
        (), description="containerd namespaces whose content is shared, comma separated; empty: all."
    )
    max_streams: int = Field(64, ge=1, le=4096, description="Streams served to peers at once; more are refused.")
    upload_limit_bytes_per_second: int = Field(
        0, ge=0, description="Bytes per second sent to peers by all streams together; 0: no limit."
    )
    relist_interval_seconds: float = Field(
        60.0, ge=1, le=3600, description="Seconds between full listings, which find what no event told."
    )
    drain_grace_seconds: float = Field(
        20.0, ge=0, le=600, description="Seconds that running streams get to finish after SIGTERM."
    )

    @model_validator(mode="after")
    def _layout_needs_a_folder(self) -> Self:
        if self.store == "oci-layout" and self.content_root is None:
            raise ValueError("store=oci-layout needs content_root, the layout directory")
        return self
