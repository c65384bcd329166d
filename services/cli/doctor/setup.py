"""What the doctor is told of a host: the settings of its node and gateway, and containerd's paths."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar
from urllib.parse import urlsplit

from stafett.cli.configure.distros import Distro
from stafett.cli.configure.hosts_toml import Gateway
from stafett.cli.configure.mirror_files import origins
from stafett.cli.configure.wanted import Wanted
from stafett.cli.doctor.running import told
from stafett.common.settings import ServiceSettings, load
from stafett.gateway.settings import GatewaySettings
from stafett.node.settings import NodeSettings

S = TypeVar("S", bound=ServiceSettings)


@dataclass(frozen=True)
class Setup:
    """One host's installation."""

    distro: Distro
    node: NodeSettings
    gateway: GatewaySettings
    sources: str
    """Where the settings were found."""

    @property
    def mirror_url(self) -> str:
        """URL of the gateway's mirror port."""
        return f"http://127.0.0.1:{self.gateway.listen_port}"

    @property
    def tags_url(self) -> str:
        """URL of the gateway's tag port."""
        return f"http://127.0.0.1:{self.gateway.tag_port}"

    @property
    def configured(self) -> Wanted:
        """What `stafett configure` has been asked for here, with this host's gateway.

        Raises:
            StartupFailed, OSError: if the mirror files cannot be read.
        """
        found = origins(self.distro.hosts_dir)
        gateway = Gateway(
            _named([origin.gateway.mirror_url for origin in found], self.mirror_url),
            _named([origin.gateway.tags_url for origin in found], self.tags_url),
        )
        return Wanted([origin.registry for origin in found if origin.registry.name], gateway, self.distro)


def read_setup(distro: Distro) -> Setup:
    """Read the settings of node and gateway, from our environment or their processes. Raises SettingsInvalid."""
    node, of_node = _settings(NodeSettings, "node")
    gateway, of_gateway = _settings(GatewaySettings, "gateway")
    return Setup(distro, node, gateway, f"{of_node}, {of_gateway}")


def _settings(model: type[S], service: str) -> tuple[S, str]:
    """Read a service's settings; also tell where they were found."""
    prefix = str(model.model_config["env_prefix"])
    process = None if any(name.startswith(prefix) for name in os.environ) else told(service)
    if process is None:
        return load(model, [], f"stafett {service}"), f"{service}: {prefix}* of this environment"
    with _environment({name: value for name, value in process.environment.items() if name.startswith(prefix)}):
        return load(model, list(process.arguments), f"stafett {service}"), f"{service}: process {process.pid}"


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _named(urls: Sequence[str], own: str) -> str:
    """Call one of our URLs as the mirror files do, if they name it: the gateway listens on both loopback addresses."""
    port = str(urlsplit(own).port)
    return next((url for url in urls if url in (f"http://{host}:{port}" for host in _LOOPBACK)), own)


_LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
