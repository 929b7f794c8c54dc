"""Certificates for the tests: an authority, and what it signs. Skips the test without `cryptography`."""

from __future__ import annotations

import ipaddress
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, NamedTuple

import pytest

PASSPHRASE = b"secret"


class Issued(NamedTuple):
    """PEM files of a certificate and its key, and when it ends."""

    certificate: Path
    key: Path
    ends: datetime


def ends_in(**time: float) -> datetime:
    """Return a time from now, without the fraction of a second, which a certificate cannot hold."""
    return (datetime.now(timezone.utc) + timedelta(**time)).replace(microsecond=0)


class Authority:
    """Signs certificates, for servers on this machine and for clients."""

    def __init__(self, folder: Path, name: str = "authority") -> None:
        self.x509 = pytest.importorskip("cryptography.x509")
        self._folder = folder
        self._name, self._key = self._subject(name), self._new_key()
        ends = ends_in(days=3650)
        self._certificate = self._build(self._name, self._key, ends, ca=True).sign(self._key, self._hash())
        self.file = self._write(f"{name}.pem", self._pem(self._certificate))

    def issue(self, name: str, ends: datetime | None = None, passphrase: bytes | None = None) -> Issued:
        """Sign a certificate of this name for 127.0.0.1 and localhost; by default it ends in 30 days."""
        key, ends = self._new_key(), ends or ends_in(days=30)
        certificate = self._build(self._subject(name), key, ends, ca=False).sign(self._key, self._hash())
        path = self._write(f"{name}.pem", self._pem(certificate))
        return Issued(path, self._write(f"{name}-key.pem", self._key_pem(key, passphrase)), ends)

    def _build(self, subject: Any, key: Any, ends: datetime, ca: bool) -> Any:
        x509 = self.x509
        names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.IPv4Address("127.0.0.1"))]
        builder = x509.CertificateBuilder().subject_name(subject).issuer_name(self._name).public_key(key.public_key())
        builder = builder.serial_number(x509.random_serial_number()).not_valid_after(ends)
        builder = builder.not_valid_before(min(ends_in(days=-1), ends - timedelta(days=1)))
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        own = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        builder = builder.add_extension(own, critical=False)
        identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
        builder = builder.add_extension(identifier, critical=False)
        builder = builder.add_extension(_usage(x509, ca), critical=True)
        return builder.add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)

    def _subject(self, name: str) -> Any:
        return self.x509.Name([self.x509.NameAttribute(self.x509.NameOID.COMMON_NAME, name)])

    def _write(self, name: str, content: bytes) -> Path:
        path = self._folder / name
        path.write_bytes(content)
        path.chmod(0o600)
        return path

    def _new_key(self) -> Any:
        from cryptography.hazmat.primitives.asymmetric import ec  # an extra, as in the other helpers

        return ec.generate_private_key(ec.SECP256R1())

    def _hash(self) -> Any:
        from cryptography.hazmat.primitives import hashes

        return hashes.SHA256()

    def _pem(self, certificate: Any) -> bytes:
        from cryptography.hazmat.primitives import serialization

        return certificate.public_bytes(serialization.Encoding.PEM)

    def _key_pem(self, key: Any, passphrase: bytes | None) -> bytes:
        from cryptography.hazmat.primitives import serialization as s

        encryption = s.BestAvailableEncryption(passphrase) if passphrase else s.NoEncryption()
        return key.private_bytes(s.Encoding.PEM, s.PrivateFormat.PKCS8, encryption)


def _usage(x509: Any, ca: bool) -> Any:
    others = ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "encipher_only")
    allowed = {"digital_signature": True, "key_cert_sign": ca, "crl_sign": ca, "decipher_only": False}
    return x509.KeyUsage(**allowed, **dict.fromkeys(others, False))
