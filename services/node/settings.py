"""What a node can be told."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator
from pydantic_settings import NoDecode, SettingsConfigDict

from stafett.common.cluster import check_node_id
from stafett.common.errors import RequestInvalid
from stafett.common.settings import MetricsPort, ServiceSettings
from stafett.common.topology import Topology


class NodeSettings(ServiceSettings):
    """Settings of `stafett node`, from STAFETT_NODE_* or options."""

    model_config = SettingsConfigDict(env_prefix="STAFETT_NODE_")

    metrics_port: MetricsPort = 7465
    node_id: str = Field(default_factory=socket.gethostname, description="Name of this node, unique in the cluster.")
    listen_host: str = Field("127.0.0.1", min_length=1, description="Address that the node's gRPC service listens on.")
    listen_port: int = Field(7461, ge=0, le=65535, description="Port of the gRPC service; 0 picks a free one.")
    advertise_host: str = Field("", description="Host that peers connect to; empty: listen_host.")
    advertise_port: int = Field(0, ge=0, le=65535, description="Port that peers connect to; 0: the listening one.")
    tracker: str = Field(
        "ipv4:127.0.0.1:7460",
        min_length=1,
        description="gRPC target of the trackers: dns:///name:port, or ipv4:addr:port,addr:port.",
    )
    region: str = Field("", description="Region of this host; may be empty.")
    zone: str = Field("", description="Zone of this host inside the region; may be empty.")
    rack: str = Field("", description="Rack of this host inside the zone; may be empty.")
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
    namespaces: Annotated[tuple[str, ...], NoDecode] = Field(
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

    @field_validator("namespaces", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(part.strip() for part in value.split(",") if part.strip())
        return value

    @field_validator("node_id")
    @classmethod
    def _node_id(cls, value: str) -> str:
        try:
            return check_node_id(value)
        except RequestInvalid as error:
            raise ValueError(str(error)) from error

    @model_validator(mode="after")
    def _layout_needs_a_folder(self) -> Self:
        if self.store == "oci-layout" and self.content_root is None:
            raise ValueError("store=oci-layout needs content_root, the layout directory")
        return self

    @property
    def topology(self) -> Topology:
        """Where this host stands."""
        return Topology(self.region, self.zone, self.rack)
