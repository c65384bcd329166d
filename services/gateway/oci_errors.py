"""Errors at the HTTP boundary: one table, and the distribution spec's JSON body."""

from __future__ import annotations

import json

from stafett.common import errors

STATUS_AND_CODE: dict[type[errors.StafettError], tuple[int, str]] = {
    errors.DigestInvalid: (400, "DIGEST_INVALID"),
    errors.NameInvalid: (400, "NAME_INVALID"),
    errors.RequestInvalid: (400, "UNSUPPORTED"),
    errors.RangeUnsatisfiable: (416, "RANGE_INVALID"),
    errors.BlobUnknown: (404, "BLOB_UNKNOWN"),
    errors.ManifestUnknown: (404, "MANIFEST_UNKNOWN"),
    errors.ManifestInvalid: (404, "MANIFEST_UNKNOWN"),
    errors.Denied: (404, "DENIED"),
    errors.NodeUnknown: (404, "NAME_UNKNOWN"),
    errors.NotServed: (404, "NAME_UNKNOWN"),
    errors.Unsupported: (405, "UNSUPPORTED"),
    # 503 and never 429, which containerd retries on the same host without any pause.
    errors.Overloaded: (503, "TOOMANYREQUESTS"),
    errors.Draining: (503, "TOOMANYREQUESTS"),
    errors.WouldCircle: (404, "BLOB_UNKNOWN"),
    errors.SessionLost: (404, "BLOB_UNKNOWN"),
    errors.Unavailable: (404, "BLOB_UNKNOWN"),
    errors.CorruptContent: (404, "BLOB_UNKNOWN"),
    errors.StartupFailed: (503, "UNKNOWN"),
}
"""HTTP status and OCI error code of each error. 404 sends containerd to the next host: the usual way of saying no."""


def error_response(error: errors.StafettError) -> tuple[int, bytes]:
    """Make status and body for an error that happened before the first byte."""
    status, code = STATUS_AND_CODE[type(error)]
    return status, error_body(code, str(error))


def error_body(code: str, message: str) -> bytes:
    """Make the spec's `errors` document."""
    return json.dumps({"errors": [{"code": code, "message": message, "detail": None}]}).encode()
