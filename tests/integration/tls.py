"""Certificate files for tests."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import trustme

from stafett.common.grpc_transport import TlsFiles


def write_identity(
    directory: Path, authority: trustme.CA, *names: str, peer_name: str = "", not_after: datetime | None = None
) -> TlsFiles:
    """Write a part's certificate for these names or addresses, and what it believes."""
    certificate = authority.issue_cert(*names, not_after=not_after)
    files = TlsFiles(directory / "tls.crt", directory / "tls.key", directory / "ca.crt", peer_name)
    certificate.private_key_pem.write_to_path(files.key)
    files.certificate.write_bytes(b"".join(blob.bytes() for blob in certificate.cert_chain_pems))
    authority.cert_pem.write_to_path(files.authority)
    return files
