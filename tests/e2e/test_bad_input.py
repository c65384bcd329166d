"""Whatever a client sends gets a proper answer from the real gateway, and is no crash in its log."""

from __future__ import annotations

import json
import socket

import pytest

from tests.e2e.bed import Bed

pytestmark = [
    pytest.mark.needs_root,
    pytest.mark.needs_program("containerd"),
    pytest.mark.needs_program("docker-registry"),
]

GOOD = "sha256:" + "a" * 64


@pytest.mark.parametrize(
    ("request_line", "headers", "status", "code"),
    [
        ("GET /v2/lib/app/blobs/sha256:xyz?ns=reg.test", "", 400, "DIGEST_INVALID"),
        (f"GET /v2/lib/app/blobs/sha512:{'a' * 128}?ns=reg.test", "", 400, "DIGEST_INVALID"),
        (f"GET /v2/lib/../app/blobs/{GOOD}?ns=reg.test", "", 400, "NAME_INVALID"),
        (f"GET /v2/lib%2fapp/blobs/{GOOD}?ns=reg.test", "", 400, "NAME_INVALID"),
        (f"GET /v2/{'x' * 10_000}/blobs/{GOOD}?ns=reg.test", "", 400, "NAME_INVALID"),
        ("GET /v2/lib/app/manifests/.bad?ns=reg.test", "", 400, "NAME_INVALID"),
        (f"GET /v2/lib/app/blobs/{GOOD}?ns=../etc", "", 400, "NAME_INVALID"),
        (f"GET /v2/lib/app/blobs/{GOOD}?ns=unknown.test", "", 404, "BLOB_UNKNOWN"),
        (f"GET /v2/lib/app/blobs/{GOOD}", "", 404, "BLOB_UNKNOWN"),
        (f"GET /v2/lib/app/blobs/{GOOD}?ns=reg.test", "Range: bytes=zz", 404, "BLOB_UNKNOWN"),
        (f"GET /v2/lib/app/manifests/{GOOD}?ns=reg.test", "", 404, "MANIFEST_UNKNOWN"),
        ("GET /v2/lib/app/tags/list?ns=reg.test", "", 404, "NAME_UNKNOWN"),
        (f"GET /v2/lib/app/referrers/{GOOD}?ns=reg.test", "", 404, None),
        ("POST /v2/lib/app/blobs/uploads/?ns=reg.test", "Content-Length: 0", 405, "UNSUPPORTED"),
        ("DELETE /v2/lib/app/manifests/1?ns=reg.test", "", 405, "UNSUPPORTED"),
        ("PUT /v2/lib/app/manifests/1?ns=reg.test", "Content-Length: 0", 405, "UNSUPPORTED"),
        ("PROPFIND /v2/", "", 405, "UNSUPPORTED"),
        ("BREW /v2/", "", 400, None),  # not HTTP to the parser: refused below the application
    ],
)
def test_bad_input_gets_an_oci_error(bed: Bed, request_line: str, headers: str, status: int, code: str | None) -> None:
    answered, body = ask(bed.hosts[0].gateway_port, request_line, headers)
    assert answered == status, body
    if code is not None:
        assert json.loads(body)["errors"][0]["code"] == code


def test_no_bad_input_was_a_crash(bed: Bed) -> None:
    for line in (
        "GET /v2/%00/blobs/x",
        "GET /v2//blobs/",
        f"GET /v2/lib/app/blobs/{GOOD}%0d%0aX:y?ns=a",
        "GET /v2/lib/app/manifests/%ff?ns=%ff",
        "GET /" + "/" * 5000,
        "GET nonsense",
    ):
        status, _ = ask(bed.hosts[0].gateway_port, line, "")
        assert 400 <= status < 500, line
    gateway = bed.hosts[0].gateway
    assert gateway is not None
    log = gateway.log.read_text()
    assert "Traceback" not in log
    assert "exception" not in log.lower()


def ask(port: int, request_line: str, headers: str) -> tuple[int, str]:
    """Send a request as it is, with no client library to tidy it up; return status and body."""
    lines = [f"{request_line} HTTP/1.1", "Host: gateway", "Connection: close", *([headers] if headers else []), "", ""]
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall("\r\n".join(lines).encode())
        answer = b""
        while piece := connection.recv(65536):
            answer += piece
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split(b" ", 2)[1]), body.decode()
