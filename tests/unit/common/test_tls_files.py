"""Which sets of certificate files are taken, and what is said of the others."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import structlog
import trustme

from stafett.common.errors import StartupFailed
from stafett.common.tls_files import KeptCertificates, TlsFiles
from tests.integration.tls import write_identity

LONG_AGO = datetime.now(UTC) - timedelta(days=1)


@pytest.fixture
def files(tmp_path: Path) -> TlsFiles:
    return write_identity(tmp_path, trustme.CA(), "host-1")


def other(files: TlsFiles, name: str = "other") -> TlsFiles:
    """Files of another issue, beside these."""
    folder = files.key.parent / name
    folder.mkdir()
    return write_identity(folder, trustme.CA(), "host-1")


def other_key(files: TlsFiles) -> None:
    shutil.copy(other(files).key, files.key)


def no_key(files: TlsFiles) -> None:
    files.key.write_text("-----BEGIN PRIVATE KEY-----\nMIG")


def half_a_certificate(files: TlsFiles) -> None:
    files.certificate.write_bytes(files.certificate.read_bytes()[:300])


def no_authority(files: TlsFiles) -> None:
    files.authority.write_text("")


def missing(files: TlsFiles) -> None:
    files.key.unlink()


def expired(files: TlsFiles) -> None:
    write_identity(files.key.parent, trustme.CA(), "host-1", not_after=LONG_AGO)


BROKEN = [
    (other_key, r"tls\.key is not the key of .*tls\.crt"),
    (no_key, r"tls\.key holds no PEM private key"),
    (half_a_certificate, r"tls\.crt holds no PEM certificate"),
    (no_authority, r"ca\.crt holds no PEM certificate"),
    (missing, r"cannot read TLS file .*tls\.key"),
    (expired, r"tls\.crt has expired at .*renew it"),
]


@pytest.mark.parametrize(("breaks", "said"), BROKEN)
def test_a_part_does_not_start_with_files_of_no_use(
    files: TlsFiles, breaks: Callable[[TlsFiles], None], said: str
) -> None:
    breaks(files)
    with pytest.raises(StartupFailed, match=said):
        KeptCertificates(files)


@pytest.mark.parametrize(("breaks", "said"), BROKEN)
def test_files_of_no_use_leave_those_before_in_use_and_are_logged_once(
    files: TlsFiles, breaks: Callable[[TlsFiles], None], said: str
) -> None:
    kept = KeptCertificates(files)
    before = kept.current()
    breaks(files)
    with structlog.testing.capture_logs() as logs:
        assert kept.current() is before
        assert kept.current() is before
    (line,) = logs
    assert line["event"] == "certificates_not_taken"
    with pytest.raises(StartupFailed, match=said):
        raise StartupFailed(line["reason"])


def test_new_files_are_taken_once_they_fit(files: TlsFiles) -> None:
    kept = KeptCertificates(files)
    before = kept.current()
    fresh = other(files)
    shutil.copy(fresh.certificate, files.certificate)
    assert kept.current() is before
    shutil.copy(fresh.key, files.key)
    assert kept.current().certificate == fresh.certificate.read_bytes()


def test_a_folder_that_is_swapped_by_a_link_is_taken_whole(files: TlsFiles) -> None:
    folder = files.key.parent
    link, second = folder / "current", other(files, "second")
    os.symlink(other(files, "first").key.parent, link)
    linked = TlsFiles(link / "tls.crt", link / "tls.key", link / "ca.crt")
    kept = KeptCertificates(linked)
    os.symlink(second.key.parent, folder / "next")
    os.replace(folder / "next", link)
    found = kept.current()
    assert (found.certificate, found.key, found.authority) == tuple(
        path.read_bytes() for path in (second.certificate, second.key, second.authority)
    )


def test_touched_files_are_not_new_ones(files: TlsFiles) -> None:
    kept = KeptCertificates(files)
    before = kept.current()
    os.utime(files.certificate, (1, 1))
    assert kept.current() is before


def test_files_are_not_looked_at_more_often_than_asked(files: TlsFiles) -> None:
    kept = KeptCertificates(files)
    before = kept.current()
    fresh = other(files)
    for name in ("certificate", "key"):
        shutil.copy(getattr(fresh, name), getattr(files, name))
    assert kept.current(max_age_seconds=3600) is before
    assert kept.current() is not before


def test_a_certificate_that_runs_out_in_use_is_logged_once(files: TlsFiles) -> None:
    kept = KeptCertificates(files)
    kept._current = replace(kept.current(), expires_at=LONG_AGO)
    with structlog.testing.capture_logs() as logs:
        kept.current()
        kept.current()
    assert [line["event"] for line in logs] == ["certificate_expired"]
