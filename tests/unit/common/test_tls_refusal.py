"""What is said of a refused connection, for each thing that gRPC says of one."""

from __future__ import annotations

from pathlib import Path

import pytest

from stafett.common.tls_files import TlsFiles
from stafett.common.tls_refusal import refusal

OURS = TlsFiles(Path("/tls/tls.crt"), Path("/tls/tls.key"), Path("/tls/ca.crt"))
BEFORE = "failed to connect to all addresses; last error: UNKNOWN: ipv4:10.0.0.1:7461: "
HANDSHAKE = BEFORE + "Tls handshake failed (TSI_PROTOCOL_FAILURE): SSL_ERROR_SSL: error:1: OPENSSL_internal:"


@pytest.mark.parametrize(
    ("details", "reason"),
    [
        (HANDSHAKE + "CERTIFICATE_VERIFY_FAILED: certificate has expired: OK", "its certificate has expired"),
        (HANDSHAKE + "CERTIFICATE_VERIFY_FAILED: certificate is not yet valid: OK", "its certificate is not valid yet"),
        (
            HANDSHAKE + "CERTIFICATE_VERIFY_FAILED: unable to get local issuer certificate: OK",
            "its certificate is not signed by an authority in /tls/ca.crt",
        ),
        (
            BEFORE + "Hostname Verification Check failed.",
            "its certificate is for other names than the one it was reached under",
        ),
        (HANDSHAKE + "WRONG_VERSION_NUMBER: Invalid certificate verification context: OK", "it speaks plain text"),
        (
            BEFORE + "Socket closed",
            "it hung up in the handshake, most likely as it refuses our certificate /tls/tls.crt",
        ),
    ],
)
def test_each_refusal_has_a_reason_and_a_remedy(details: str, reason: str) -> None:
    said = refusal(details, OURS)
    assert said is not None
    assert said.reason == reason
    assert said.remedy


@pytest.mark.parametrize("details", ["", BEFORE + "Connection refused", "Socket closed", "Deadline Exceeded"])
@pytest.mark.parametrize("tls", [OURS, None])
def test_other_failures_are_not_blamed_on_certificates(details: str, tls: TlsFiles | None) -> None:
    assert refusal(details, tls) is None


def test_plain_text_on_which_the_peer_hangs_up_is_explained() -> None:
    said = refusal(BEFORE + "Socket closed", None)
    assert said is not None
    assert said.reason == "it hung up on plain text"
