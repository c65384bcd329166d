"""All gRPC servers and channels are made here: deadlines, keepalive, limits, windows, credentials.

Flow-control windows are fixed (no bandwidth probing), otherwise memory grows with the fastest peer. The environment's
http proxies are ignored: traffic inside the cluster never takes them.
"""

from __future__ import annotations

import ipaddress
import json
import os
from collections.abc import Sequence
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2_grpc
from grpc_health.v1.health import aio as health_aio

from stafett.common.cluster import Address
from stafett.common.errors import StartupFailed
from stafett.common.grpc_errors import ErrorInterceptor
from stafett.common.grpc_tracing import server_interceptors
from stafett.common.tls_channel import RotatingChannel
from stafett.common.tls_files import Certificates, kept
from stafett.common.tls_files import TlsFiles as TlsFiles

# gRPC's core writes lines of its own to standard error, not in our format; errors reach us as exceptions.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

STREAM_WINDOW_BYTES = 4 * 1024 * 1024
MESSAGE_MAX_BYTES = 8 * 1024 * 1024
CONTROL_DEADLINE_SECONDS = 5.0
"""Deadline of calls that are not on a client's path; those on it set their own, shorter one."""

_COMMON_OPTIONS: tuple[tuple[str, int | str], ...] = (
    ("grpc.enable_http_proxy", 0),
    ("grpc.max_receive_message_length", MESSAGE_MAX_BYTES),
    ("grpc.max_send_message_length", MESSAGE_MAX_BYTES),
    ("grpc.http2.bdp_probe", 0),
    ("grpc.http2.lookahead_bytes", STREAM_WINDOW_BYTES),
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
)
_SERVER_OPTIONS = (
    *_COMMON_OPTIONS,
    ("grpc.so_reuseport", 0),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),
)
_CHANNEL_OPTIONS = (
    *_COMMON_OPTIONS,
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1_000),
    ("grpc.max_reconnect_backoff_ms", 2_000),
)
_TRACKER_SERVICE = "stafett.api.v1.TrackerService"
_TRACKER_UNARY = ("Locate", "Relay", "ResolveTag", "ListNodes", "ListImages", "DrainNode")
"""Calls that another replica is asked to answer; made twice they do no harm."""
_TRACKER_SERVICE_CONFIG = {
    "loadBalancingConfig": [{"round_robin": {}}],
    "healthCheckConfig": {"serviceName": _TRACKER_SERVICE},
    "methodConfig": [
        {
            "name": [{"service": _TRACKER_SERVICE, "method": method} for method in _TRACKER_UNARY],
            "retryPolicy": {
                "maxAttempts": 3,
                "initialBackoff": "0.05s",
                "maxBackoff": "0.2s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ],
}

_LOCAL_OPTIONS = (
    *(option for option in _CHANNEL_OPTIONS if not option[0].startswith("grpc.keepalive")),
    ("grpc.default_authority", "localhost"),
)
"""No keepalive: a socket of this host breaks when its server goes, and containerd hangs up on who pings it often."""
_TRACKER_OPTIONS = (*_CHANNEL_OPTIONS, ("grpc.service_config", json.dumps(_TRACKER_SERVICE_CONFIG)))


def new_server() -> tuple[grpc.aio.Server, health_aio.HealthServicer]:
    """Make a server with the error interceptor and the standard health service, which serves nothing healthy yet."""
    server = grpc.aio.server(interceptors=[*server_interceptors(), ErrorInterceptor()], options=_SERVER_OPTIONS)
    health = health_aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    return server, health


def bind(server: grpc.aio.Server, address: Address, tls: TlsFiles | None, *, allow_plaintext: bool = False) -> int:
    """Listen on address (port 0 picks a free one) and return the port.

    Raises:
        StartupFailed: if the port is taken, a certificate file is unusable, or plain text would leave the host unasked.
    """
    if tls is None and not allow_plaintext and not _is_loopback(address.host):
        raise StartupFailed(
            f"refusing plain text on {address.target()}: set the tls files, listen on 127.0.0.1, or set allow_plaintext"
        )
    try:
        if tls is None:
            port = server.add_insecure_port(address.target())
        else:
            port = server.add_secure_port(address.target(), _server_credentials(tls))
    except RuntimeError as error:
        raise StartupFailed(
            f"cannot listen on {address.target()}: it is taken or not an address of this host; "
            "choose another listen host or port"
        ) from error
    return port


def tracker_channel(target: str, tls: TlsFiles | None) -> grpc.aio.Channel:
    """Open a channel to the trackers, balanced round-robin over all healthy replicas of a gRPC target name.

    Targets: `dns:///name:port`, `ipv4:1.2.3.4:5,6.7.8.9:5`, `ipv6:[::1]:5,...`.
    """
    return _channel(target, tls, _TRACKER_OPTIONS)


def blocking_tracker_channel(target: str, tls: TlsFiles | None) -> grpc.Channel:
    """Open the same for commands, which have no event loop."""
    if tls is None:
        return grpc.insecure_channel(target, options=_TRACKER_OPTIONS)
    return grpc.secure_channel(
        target, _channel_credentials(kept(tls).current()), options=[*_TRACKER_OPTIONS, *_checked_name(tls)]
    )


def peer_channel(address: Address, tls: TlsFiles | None, *, certified_name: str = "") -> grpc.aio.Channel:
    """Open a channel to one node's BlobService, or to one tracker; its certificate is for the address, or the name."""
    override = (("grpc.ssl_target_name_override", certified_name),) if certified_name and tls else ()
    return _channel(address.target(), tls, (*_CHANNEL_OPTIONS, *override))


def unix_channel(path: Path) -> grpc.aio.Channel:
    """Open a channel to a unix socket, e.g. containerd's; path must be absolute (gRPC refuses relative ones)."""
    return grpc.aio.insecure_channel(f"unix://{path.absolute()}", options=_LOCAL_OPTIONS)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _channel(target: str, tls: TlsFiles | None, options: Sequence[tuple[str, int | str]]) -> grpc.aio.Channel:
    if tls is None:
        return grpc.aio.insecure_channel(target, options=options)
    options = [*options, *_checked_name(tls)]
    return RotatingChannel(
        target,
        tls,
        lambda certificates: grpc.aio.secure_channel(target, _channel_credentials(certificates), options=options),
    )


def _checked_name(tls: TlsFiles) -> Sequence[tuple[str, str]]:
    return [("grpc.ssl_target_name_override", tls.peer_name)] if tls.peer_name else []


def _channel_credentials(own: Certificates) -> grpc.ChannelCredentials:
    return grpc.ssl_channel_credentials(own.authority, own.key, own.certificate)


def _server_credentials(tls: TlsFiles) -> grpc.ServerCredentials:
    """Make credentials that are asked at each handshake whether there are newer ones, or newer authorities.

    Raises:
        StartupFailed: if the files are of no use.
    """
    given = kept(tls).current()

    def newer() -> grpc.ServerCertificateConfiguration | None:
        nonlocal given
        before, given = given, kept(tls).current()
        return None if given is before else _server_configuration(given)

    first = _server_configuration(given)
    return grpc.dynamic_ssl_server_credentials(first, newer, require_client_authentication=True)  # type: ignore[arg-type]


def _server_configuration(own: Certificates) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration([(own.key, own.certificate)], own.authority)
