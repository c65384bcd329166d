"""How commands ask the trackers: through all replicas, with certificates from STAFETT_TLS_*, in the foreground."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import grpc
from pydantic import ValidationError

from stafett.api.v1 import tracker_pb2_grpc
from stafett.common.errors import StartupFailed
from stafett.common.grpc_transport import TlsFiles, blocking_tracker_channel
from stafett.common.settings import ServiceSettings
from stafett.common.tls_refusal import refusal

CALL_SECONDS = 5.0
EXIT_FAILED = 1


@contextmanager
def trackers(target: str) -> Iterator[tracker_pb2_grpc.TrackerServiceStub]:
    """Connect to the trackers; a call that fails ends the command with a message and exit code 1."""
    tls = None
    try:
        tls = own_tls()
        with blocking_tracker_channel(target, tls) as channel:
            yield tracker_pb2_grpc.TrackerServiceStub(channel)
    except (grpc.RpcError, StartupFailed) as error:
        print(_said(target, error, tls), file=sys.stderr)
        raise SystemExit(EXIT_FAILED) from error


def own_tls() -> TlsFiles | None:
    """Read which certificates a command shows, from STAFETT_TLS_CERTIFICATE, _KEY and _AUTHORITY.

    Raises:
        StartupFailed: if only some of them are set.
    """
    try:
        return ServiceSettings.model_validate({}).tls
    except ValidationError as error:
        raise StartupFailed("set all of STAFETT_TLS_CERTIFICATE, _KEY and _AUTHORITY, or none of them") from error


def _said(target: str, error: Exception, tls: TlsFiles | None) -> str:
    if isinstance(error, StartupFailed):
        return str(error)
    details = (error.details() if isinstance(error, grpc.Call) else None) or ""
    if why := refusal(details, tls):
        shown = f"certificate {tls.certificate}, authority {tls.authority}" if tls else "none, set by STAFETT_TLS_*"
        return f"no connection to the trackers at {target}: {why.reason}\n{why.remedy} (ours: {shown})"
    return (
        f"the trackers at {target} do not answer: {details}\n"
        "is one running? Name them by --tracker or STAFETT_TRACKER, and the certificates by STAFETT_TLS_*"
    )
