"""`stafett certs`: the parts take what it makes, what is good stays, the key of an authority is never overwritten."""

from __future__ import annotations

import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from typer.testing import CliRunner

from stafett.cli.app import app
from stafett.cli.certs import make_certificates
from stafett.common.errors import StartupFailed
from stafett.common.tls_files import KeptCertificates, TlsFiles

NOW = datetime.now(UTC)


def files(folder: Path) -> TlsFiles:
    return TlsFiles(folder / "tls.crt", folder / "tls.key", folder / "ca.crt")


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def make(folder: Path, *names: str, days: int = 90, later: timedelta = timedelta(), new: bool = False) -> list[str]:
    return list(make_certificates(folder, names, days, new_authority=new, now=NOW + later))


def authorities(folder: Path) -> list[x509.Certificate]:
    return x509.load_pem_x509_certificates((folder / "ca.crt").read_bytes())


def test_each_name_gets_a_folder_of_files_that_a_part_takes(tmp_path: Path) -> None:
    make(tmp_path, "host-1.example.com,10.0.0.1,::1", "host-2")
    for name in ("host-1.example.com", "host-2"):
        KeptCertificates(files(tmp_path / name))
    leaf = x509.load_pem_x509_certificate((tmp_path / "host-1.example.com" / "tls.crt").read_bytes())
    leaf.verify_directly_issued_by(authorities(tmp_path)[0])
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [str(name.value) for name in names] == ["host-1.example.com", "10.0.0.1", "::1"]
    keys = [path for path in tmp_path.rglob("*.key")]
    assert len(keys) == 3
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in keys)


def test_a_second_run_changes_nothing(tmp_path: Path) -> None:
    make(tmp_path, "host-1,0:0::1")
    before = content(tmp_path)
    assert make(tmp_path, "host-1,::1")[1].endswith(f"kept, valid until {NOW + timedelta(days=90):%Y-%m-%d}")
    make(tmp_path)
    assert content(tmp_path) == before


@pytest.mark.parametrize(("days_later", "renewed"), [(59, False), (61, True), (120, True)])
def test_a_certificate_is_renewed_in_the_last_third_of_its_time(tmp_path: Path, days_later: int, renewed: bool) -> None:
    make(tmp_path, "host-1")
    before = content(tmp_path)
    make(tmp_path, later=timedelta(days=days_later))
    changed = {name for name, now in content(tmp_path).items() if now != before[name]}
    assert changed == ({"host-1/tls.crt", "host-1/tls.key"} if renewed else set())


def test_other_names_make_another_certificate(tmp_path: Path) -> None:
    make(tmp_path, "host-1")
    assert "new, for host-1, 10.0.0.2" in make(tmp_path, "host-1,10.0.0.2")[1]


def test_a_new_authority_is_believed_first_and_signs_in_the_next_run(tmp_path: Path) -> None:
    make(tmp_path, "host-1")
    old_key, old_leaf = (tmp_path / "ca.key").read_bytes(), (tmp_path / "host-1" / "tls.crt").read_bytes()
    (old,) = authorities(tmp_path)
    make(tmp_path, new=True, later=timedelta(seconds=1))
    assert authorities(tmp_path / "host-1")[1:] == [old]
    assert (tmp_path / "host-1" / "tls.crt").read_bytes() == old_leaf, "nobody believes the new authority yet"
    assert old_key in [path.read_bytes() for path in tmp_path.glob("ca.*.key")], "the old key is kept"
    make(tmp_path, later=timedelta(seconds=2))
    leaf = x509.load_pem_x509_certificate((tmp_path / "host-1" / "tls.crt").read_bytes())
    leaf.verify_directly_issued_by(authorities(tmp_path)[0])


def test_an_authority_without_its_key_is_not_replaced_unasked(tmp_path: Path) -> None:
    make(tmp_path, "host-1")
    (tmp_path / "ca.key").unlink()
    before = content(tmp_path)
    with pytest.raises(StartupFailed, match=r"ca\.key is missing"):
        make(tmp_path, "host-1")
    assert content(tmp_path) == before


@pytest.mark.parametrize("name", ["../up", "/etc", "", "a,", "two words", "-a"])
def test_what_is_no_name_is_refused_before_anything_is_written(tmp_path: Path, name: str) -> None:
    with pytest.raises(StartupFailed, match="is no DNS name or address"):
        make(tmp_path / "made", name)
    assert not (tmp_path / "made").exists()


def test_the_command_says_what_it_did(tmp_path: Path) -> None:
    first = CliRunner().invoke(app, ["certs", str(tmp_path)])
    assert (first.exit_code, first.output.count(": new")) == (0, 2), first.output
    assert "localhost, 127.0.0.1, ::1" in first.output
    (tmp_path / "ca.crt").write_text("damaged")
    second = CliRunner().invoke(app, ["certs", str(tmp_path)])
    assert second.exit_code == 1
    assert "ca.crt holds no certificate" in second.output
