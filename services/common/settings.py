"""Settings of the services: options, environment variables or files, checked together before anything starts.

The folder that STAFETT_SETTINGS_DIR names may hold a file for each setting, named like its variable: for what must not
be in the environment (a URL with a password), and for what is found out when a host starts (where it stands).
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal, Self, TypeVar

from pydantic import BeforeValidator, Field, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict, SettingsError

from stafett.common.cluster import Address, check_node_id
from stafett.common.errors import RequestInvalid, StartupFailed
from stafett.common.grpc_transport import TlsFiles
from stafett.common.topology import Topology

SETTINGS_DIR = "STAFETT_SETTINGS_DIR"
MetricsPort = Annotated[
    int, Field(ge=0, le=65535, description="Port of the Prometheus endpoint /metrics; 0 picks a free one.")
]


def _split(value: object) -> object:
    return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value


Words = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split)]
"""Given as one text, separated by commas."""


class SettingsInvalid(StartupFailed):
    """Settings are wrong; the message lists every wrong one."""


class ServiceSettings(BaseSettings):
    """What every service can be told. Subclasses set `env_prefix`."""

    model_config = SettingsConfigDict(frozen=True, extra="forbid", env_prefix="STAFETT_")

    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Least severe log events that are written."
    )
    tls_certificate: Path | None = Field(
        None,
        description="PEM file with this part's certificate. Set all three tls files or none (plain text).",
    )
    tls_key: Path | None = Field(None, description="PEM file with the certificate's private key.")
    tls_authority: Path | None = Field(
        None,
        description="PEM file with the authority that every other part's certificate must be signed by.",
    )
    tls_peer_name: str = Field(
        "",
        description="Name that every other part's certificate must have; empty: the host that it is reached under. "
        "For parts that share a certificate and are reached under addresses.",
    )
    allow_plaintext: bool = Field(False, description="Allow listening without TLS on other addresses than loopback.")
    metrics_host: str = Field(
        "127.0.0.1", min_length=1, description="Address that the Prometheus endpoint listens on, always in plain HTTP."
    )
    metrics_port: MetricsPort = 0

    @model_validator(mode="after")
    def _all_tls_files_or_none(self) -> Self:
        files = (self.tls_certificate, self.tls_key, self.tls_authority)
        if any(files) and not all(files):
            raise ValueError("set all of tls_certificate, tls_key and tls_authority, or none of them")
        return self

    @property
    def metrics_address(self) -> Address:
        """Where Prometheus finds this part."""
        return Address(self.metrics_host, self.metrics_port)

    @property
    def tls(self) -> TlsFiles | None:
        """The certificate files, or None for plain text."""
        if self.tls_certificate and self.tls_key and self.tls_authority:
            return TlsFiles(self.tls_certificate, self.tls_key, self.tls_authority, self.tls_peer_name)
        return None


class HostSettings(ServiceSettings):
    """What the parts that run on every host can both be told."""

    tracker: str = Field(
        "ipv4:127.0.0.1:7460",
        min_length=1,
        description="gRPC target of the trackers: dns:///name:port, or ipv4:addr:port,addr:port.",
    )
    node_id: str = Field(
        default_factory=socket.gethostname, description="Name of this host's node, unique in the cluster."
    )
    region: str = Field("", description="Region of this host; may be empty.")
    zone: str = Field("", description="Zone of this host inside the region; may be empty.")
    rack: str = Field("", description="Rack of this host inside the zone; may be empty.")

    @field_validator("node_id")
    @classmethod
    def _node_id(cls, value: str) -> str:
        try:
            return check_node_id(value)
        except RequestInvalid as error:
            raise ValueError(str(error)) from error

    @property
    def topology(self) -> Topology:
        """Where this host stands."""
        return Topology(self.region, self.zone, self.rack)


S = TypeVar("S", bound=ServiceSettings)


def load(settings_type: type[S], arguments: list[str], program: str) -> S:
    """Read settings from options (first), environment, and files.

    `--help` among the arguments prints every setting and exits with 0.

    Raises:
        SettingsInvalid: with one line for each wrong setting, unknown variables and files with our prefix included.
    """
    folder = Path(os.environ[SETTINGS_DIR]) if os.environ.get(SETTINGS_DIR) else None
    try:
        problems = _unknown_names(settings_type, [*os.environ, *(os.listdir(folder) if folder else ())])
    except OSError as error:
        raise SettingsInvalid(f"{SETTINGS_DIR}: {folder} cannot be read: {error.strerror}") from error
    try:
        settings = settings_type(
            _secrets_dir=folder,
            _cli_parse_args=arguments,  # type: ignore[call-arg]
            _cli_prog_name=program,
            _cli_kebab_case=True,
            _cli_hide_none_type=True,
            _cli_implicit_flags=True,
        )
    except ValidationError as error:
        problems += [_describe(settings_type, item["loc"], item["msg"]) for item in error.errors()]
    except SettingsError as error:
        problems.append(str(error))
    if problems:
        raise SettingsInvalid("wrong settings:\n" + "\n".join(f"  {problem}" for problem in problems))
    return settings


def _unknown_names(settings_type: type[ServiceSettings], names: Iterable[str]) -> list[str]:
    prefix = settings_type.model_config["env_prefix"]
    known = {f"{prefix}{name}".upper() for name in settings_type.model_fields}
    return [
        f"{name}: no such setting; see --help for the names"
        for name in sorted(names)
        if name.upper().startswith(prefix) and name.upper() not in known
    ]


def _describe(settings_type: type[ServiceSettings], location: tuple[int | str, ...], message: str) -> str:
    prefix = settings_type.model_config["env_prefix"]
    if not location:
        return message
    name = str(location[0])
    return f"{prefix}{name.upper()} (--{name.replace('_', '-')}): {message}"
