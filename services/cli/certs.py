"""`stafett certs`: an authority of one's own and the certificates that it signs, for development and small sites.

What is still good stays as it is, so the command can be run at any time. The authority's key is never overwritten: a
new authority takes over only when it is asked for, and the old one stays believed beside it.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from stafett.common.errors import StartupFailed

AUTHORITY_DAYS = 3650
_NAME = re.compile(r"(\*\.)?[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?|[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*")
BACKDATED = timedelta(minutes=5)
"""For hosts whose clock is behind."""


@dataclass(frozen=True, slots=True)
class Authority:
    """Who signs, and the PEM bundle of all who are believed: it first, then earlier ones."""

    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate
    bundle: bytes


def make_certificates(
    folder: Path, names: Sequence[str], days: int, *, new_authority: bool = False, now: datetime | None = None
) -> Iterator[str]:
    """Make folder/ca.{crt,key}, and tls.crt, tls.key and ca.crt in a folder for each name; tell what was done.

    Each of `names` is one certificate, "host-1,10.0.0.1": all its DNS names and addresses, its folder called like the
    first. Certificates made earlier are renewed when less than a third of `days` is left, or their authority is another
    one; but not when there is a new authority, as nobody believes it yet: first all need its ca.crt.

    Raises:
        StartupFailed: if a name is none, a file is damaged, or the authority's key is missing.
    """
    now = now or datetime.now(UTC)
    wanted = {parts[0]: parts for parts in map(_parse, names)}
    authority, said = _authority(folder, now, new=new_authority)
    yield said
    earlier = {path.parent.name: _names(_load(path)) for path in sorted(folder.glob("*/tls.crt"))}
    for first, parts in {**earlier, **wanted}.items():
        place = folder / first
        place.mkdir(mode=0o755, exist_ok=True)
        _write(place / "ca.crt", authority.bundle)
        waits = new_authority and first in earlier and earlier[first] == parts
        if waits or _still_good(place, parts, authority, now + timedelta(days=days) / 3):
            yield f"{place}: kept, valid until {_load(place / 'tls.crt').not_valid_after_utc:%Y-%m-%d}"
            continue
        certificate = _issue(place, parts, authority, now, days)
        yield f"{place}: new, for {', '.join(parts)}, valid until {certificate.not_valid_after_utc:%Y-%m-%d}"


def _authority(folder: Path, now: datetime, *, new: bool) -> tuple[Authority, str]:
    certificate_path, key_path = folder / "ca.crt", folder / "ca.key"
    if key_path.exists() and not new:
        try:
            key, bundle = load_pem_private_key(key_path.read_bytes(), None), certificate_path.read_bytes()
        except (OSError, ValueError) as error:
            raise StartupFailed(f"the authority in {folder} is damaged: {error}") from error
        certificate = _load(certificate_path)
        if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
            raise StartupFailed(f"{key_path} is not the key of the first certificate in {certificate_path}")
        return Authority(key, certificate, bundle), f"{certificate_path}: kept"
    if certificate_path.exists() and not new:
        raise StartupFailed(f"{key_path} is missing: put it back, or make another authority by --new-authority")
    believed = x509.load_pem_x509_certificates(certificate_path.read_bytes()) if certificate_path.exists() else []
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = _sign_authority(key, now)
    still = [one for one in believed if one.not_valid_after_utc > now]
    bundle = b"".join(one.public_bytes(Encoding.PEM) for one in (certificate, *still))
    folder.mkdir(parents=True, exist_ok=True)
    if key_path.exists():
        key_path.replace(folder / f"ca.{now:%Y%m%d%H%M%S}.key")
    _write_key(key_path, key)
    _write(certificate_path, bundle)
    beside = f", beside {len(still)} earlier: give ca.crt to all parts, then run this again" if still else ""
    return Authority(key, certificate, bundle), f"{certificate_path}: new{beside}"


def _sign_authority(key: ec.EllipticCurvePrivateKey, now: datetime) -> x509.Certificate:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"Stafett authority of {now:%Y-%m-%d %H:%M:%S}")])
    usage = x509.KeyUsage(
        digital_signature=False,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=True,
        crl_sign=True,
        encipher_only=False,
        decipher_only=False,
    )
    return (
        _builder(name, name, key.public_key(), now, AUTHORITY_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .sign(key, SHA256())
    )


def _issue(place: Path, names: Sequence[str], authority: Authority, now: datetime, days: int) -> x509.Certificate:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0][:64])])
    issuer = authority.certificate
    usages = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    signer = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.key.public_key())
    certificate = (
        _builder(subject, issuer.subject, key.public_key(), now, days)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([_alternative(name) for name in names]), critical=False)
        .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        .add_extension(signer, critical=False)
        .sign(authority.key, SHA256())
    )
    _write_key(place / "tls.key", key)
    _write(place / "tls.crt", certificate.public_bytes(Encoding.PEM))
    return certificate


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, now: datetime, days: int
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATED)
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _still_good(place: Path, names: Sequence[str], authority: Authority, until: datetime) -> bool:
    try:
        certificate = _load(place / "tls.crt")
        key = load_pem_private_key((place / "tls.key").read_bytes(), None)
        certificate.verify_directly_issued_by(authority.certificate)
    except (StartupFailed, OSError, ValueError, TypeError, InvalidSignature):
        return False
    own = key.public_key() == certificate.public_key()
    return own and certificate.not_valid_after_utc > until and _names(certificate) == list(names)


def _parse(names: str) -> list[str]:
    parts = [part.strip() for part in names.split(",")]
    for part in parts:
        if not _NAME.fullmatch(part):
            raise StartupFailed(f"{part!r} is no DNS name or address; give --name host-1,10.0.0.1 for one certificate")
    return [str(_alternative(part).value) for part in parts]


def _alternative(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _names(certificate: x509.Certificate) -> list[str]:
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return [str(name.value) for name in names]


def _load(path: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except (OSError, ValueError) as error:
        raise StartupFailed(f"{path} holds no certificate: {error}; remove it to have it made again") from error


def _write_key(path: Path, key: ec.EllipticCurvePrivateKey) -> None:
    _write(path, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()), mode=0o600)


def _write(path: Path, content: bytes, mode: int = 0o644) -> None:
    """Replace a file at once; whoever reads it has the old content or the new one."""
    fresh = path.with_name(f".{path.name}.new")
    fresh.unlink(missing_ok=True)
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with open(descriptor, "wb") as file:
        file.write(content)
    fresh.replace(path)
