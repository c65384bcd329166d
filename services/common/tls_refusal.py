"""Why a TLS connection was refused, in words: from what gRPC says of it, and the files that were used.

A server that refuses a client says so only by hanging up, after the client thinks that all is well.
"""

from __future__ import annotations

from dataclasses import dataclass

import grpc

from stafett.common.tls_files import TlsFiles

_CONNECTING = "last error:"
"""gRPC says this of a connection that was never made, not of one that has ended."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """What is wrong, and what to look at."""

    reason: str
    remedy: str
    certain: bool = True
    """False: a peer that ends at that moment looks the same."""


def refusal(details: str, tls: TlsFiles | None) -> Refusal | None:
    """Explain the details of a failed call; None if it failed for another reason than certificates."""
    if _CONNECTING not in details:
        return None
    if tls is None:
        return _HUNG_UP_ON_PLAIN_TEXT if _hung_up(details) else None
    for sign, reason, remedy in _SIGNS:
        if sign in details:
            return Refusal(reason.format(tls=tls), remedy.format(tls=tls))
    if _hung_up(details):
        reason = f"it hung up in the handshake, most likely as it refuses our certificate {tls.certificate}"
        remedy = "check that its authority file has who signed ours, that ours is valid by its clock"
        return Refusal(reason, remedy, certain=False)
    return None


def in_words(error: grpc.aio.AioRpcError, tls: TlsFiles | None) -> str:
    """Say why a call failed: the refusal and what to look at, or else its status."""
    why = refusal(error.details() or "", tls)
    return f"{why.reason}; {why.remedy}" if why else error.code().name


def _hung_up(details: str) -> bool:
    return any(sign in details for sign in ("Socket closed", "Connection reset", "Broken pipe", "SSLV3_ALERT", "TLSV1"))


_HUNG_UP_ON_PLAIN_TEXT = Refusal("it hung up on plain text", "if it has certificates, it wants to see one")
_SIGNS = (
    ("certificate has expired", "its certificate has expired", "renew it there, or set the clocks of both hosts"),
    ("certificate is not yet valid", "its certificate is not valid yet", "set the clocks of both hosts"),
    (
        "Hostname Verification",
        "its certificate is for other names than the one it was reached under",
        "put that name or address into its certificate, or set tls_peer_name to one that it has",
    ),
    (
        "CERTIFICATE_VERIFY_FAILED",
        "its certificate is not signed by an authority in {tls.authority}",
        "give all parts the same authorities, the old and the new one while they are changed",
    ),
    ("WRONG_VERSION_NUMBER", "it speaks plain text", "set its tls files, or none here"),
)
"""What gRPC's text contains, the reason, the remedy; the first that fits."""
