"""A part's certificate files: read as a set that fits together, and again when they change.

Files that cannot be read, do not fit together or have expired are never taken: the set before stays in use, and the log
says why, once. Kubernetes swaps a folder of files at once; others write them one after the other, and fit in the end.
"""

from __future__ import annotations

import functools
import os
import threading
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import structlog
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from stafett.common.errors import StartupFailed

log = structlog.get_logger()

_READS = 3
"""How often files are read when they change meanwhile."""

Stamp = tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM files of one part: who it is (certificate, key) and whom it believes (authority)."""

    certificate: Path
    key: Path
    authority: Path
    peer_name: str = ""
    """Name that all other parts' certificates have, checked in place of the host that was dialled; empty: that host."""


@dataclass(frozen=True, slots=True)
class Certificates:
    """What the files held, as PEM."""

    certificate: bytes
    key: bytes
    authority: bytes
    expires_at: datetime


class KeptCertificates:
    """The newest set of files that fits together. May be used from any thread."""

    def __init__(self, files: TlsFiles) -> None:
        """Read the files. Raises StartupFailed: if they are of no use."""
        self._files = files
        self._lock = threading.Lock()
        self._stamp, self._current = _read(files)
        self._looked_at = time.monotonic()
        self._refused: Stamp | None = None
        self._said_expired = False

    def current(self, max_age_seconds: float = 0.0) -> Certificates:
        """Tell what is in use, after a look at the files unless the last one was less than so long ago."""
        with self._lock:
            now = time.monotonic()
            if now - self._looked_at >= max_age_seconds:
                self._looked_at = now
                self._look()
            return self._current

    def _look(self) -> None:
        stamp = _stamp(self._files)
        if stamp != self._stamp:
            self._take(stamp)
        if not self._said_expired and self._current.expires_at <= datetime.now(UTC):
            self._said_expired = True
            log.error(
                "certificate_expired",
                certificate=str(self._files.certificate),
                expired_at=self._current.expires_at.isoformat(),
                remedy="put a new certificate and its key there: other parts refuse this one, nothing needs a restart",
            )

    def _take(self, stamp: Stamp) -> None:
        try:
            self._stamp, fresh = _read(self._files)
        except StartupFailed as error:
            if stamp != self._refused:
                self._refused = stamp
                log.warning("certificates_not_taken", reason=str(error), remedy="until then those before stay in use")
            return
        self._refused = None
        if fresh != self._current:
            self._current, self._said_expired = fresh, False
            log.info(
                "certificates_taken",
                certificate=str(self._files.certificate),
                authority=str(self._files.authority),
                expires_at=fresh.expires_at.isoformat(),
            )


kept = functools.cache(KeptCertificates)
"""The one KeptCertificates of these files. Raises StartupFailed: if they are of no use when they are first read."""


def _paths(files: TlsFiles) -> tuple[Path, Path, Path]:
    return files.certificate, files.key, files.authority


def _stamp(files: TlsFiles) -> Stamp:
    """What changes when one of the files does; empty if one is missing."""
    try:
        found = [os.stat(path) for path in _paths(files)]
    except OSError:
        return ()
    return tuple((status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns) for status in found)


def _read(files: TlsFiles) -> tuple[Stamp, Certificates]:
    for _ in range(_READS):
        stamp = _stamp(files)
        try:
            certificate, key, authority = (path.read_bytes() for path in _paths(files))
        except OSError as error:
            raise StartupFailed(f"cannot read TLS file {error.filename}: {error.strerror}") from error
        if stamp == _stamp(files):
            break
    return stamp, _checked(files, certificate, key, authority, datetime.now(UTC))


def _checked(files: TlsFiles, certificate: bytes, key: bytes, authority: bytes, now: datetime) -> Certificates:
    own = _certificates(files.certificate, certificate)[0]
    try:
        private = load_pem_private_key(key, None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise StartupFailed(f"{files.key} holds no PEM private key, or one with a passphrase") from error
    if private.public_key() != own.public_key():
        raise StartupFailed(f"{files.key} is not the key of {files.certificate}: put both there from the same issue")
    _valid_now(files.certificate, own, now)
    believed = _certificates(files.authority, authority)
    _valid_now(files.authority, max(believed, key=lambda one: one.not_valid_after_utc), now)
    return Certificates(certificate, key, authority, own.not_valid_after_utc)


def _certificates(path: Path, pem: bytes) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(pem)
    except ValueError as error:
        raise StartupFailed(f"{path} holds no PEM certificate") from error


def _valid_now(path: Path, certificate: x509.Certificate, now: datetime) -> None:
    if now >= certificate.not_valid_after_utc:
        raise StartupFailed(
            f"{path} has expired at {certificate.not_valid_after_utc.isoformat()}: renew it, or set this host's clock"
        )
    if now < certificate.not_valid_before_utc:
        raise StartupFailed(
            f"{path} is valid from {certificate.not_valid_before_utc.isoformat()} on: set this host's clock"
        )
