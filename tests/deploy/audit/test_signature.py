"""A signature holds over the very bytes it was made of, by the key that made it, and OpenSSL makes it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from envelopes import public_pem
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deploy.audit.signature import SIGNATURE_BYTES, SignatureError, check_signature, signature_path

serialization = pytest.importorskip("cryptography.hazmat.primitives.serialization")
ec = pytest.importorskip("cryptography.hazmat.primitives.asymmetric.ec")
ed25519 = pytest.importorskip("cryptography.hazmat.primitives.asymmetric.ed25519")

CONTENT = b"version: 1\n"


class Signed:
    """A file, its signature, and the public key beside them."""

    def __init__(self, folder: Path) -> None:
        self.path, self.key = folder / "envelope.yaml", folder / "key.pub"
        self.signature = signature_path(self.path)
        self.private = ed25519.Ed25519PrivateKey.generate()
        self.path.write_bytes(CONTENT)
        self.signature.write_bytes(self.private.sign(CONTENT))
        self.key.write_bytes(public_pem(self.private))

    def check(self) -> None:
        check_signature(self.path, self.path.read_bytes(), self.key)

    def refused(self) -> str:
        with pytest.raises(SignatureError) as caught:
            self.check()
        (line,) = str(caught.value).splitlines()
        return line


def private_pem(private) -> bytes:
    form, bare = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    return private.private_bytes(serialization.Encoding.PEM, form, bare)


@pytest.fixture
def signed(tmp_path: Path) -> Signed:
    return Signed(tmp_path)


def test_a_signature_of_these_bytes_by_this_key_holds(signed):
    signed.check()


@pytest.mark.skipif(shutil.which("openssl") is None, reason="there is no openssl here")
def test_what_openssl_signs_holds(signed):
    key = signed.path.with_name("key.pem")
    for command in (
        ["genpkey", "-algorithm", "ed25519", "-out", key],
        ["pkey", "-in", key, "-pubout", "-out", signed.key],
        ["pkeyutl", "-sign", "-inkey", key, "-rawin", "-in", signed.path, "-out", signed.signature],
    ):
        subprocess.run(["openssl", *map(str, command)], check=True, capture_output=True)
    signed.check()


@given(at=st.integers(0, len(CONTENT) * 8 - 1))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_single_bit_that_changed_is_found(signed, at):
    changed = bytearray(CONTENT)
    changed[at // 8] ^= 1 << at % 8
    signed.path.write_bytes(changed)
    assert "no signature of these bytes" in signed.refused() and "openssl pkeyutl" in signed.refused()


def test_the_signature_of_another_key_does_not_hold(signed):
    signed.key.write_bytes(public_pem(ed25519.Ed25519PrivateKey.generate()))
    assert "no signature of these bytes" in signed.refused()


def test_a_missing_signature_is_an_error_that_says_how_to_make_one(signed):
    signed.signature.unlink()
    assert "envelope.yaml.sig: cannot be read: No such file or directory: sign it: openssl pkeyutl" in signed.refused()


def test_a_missing_key_is_an_error_that_says_how_to_make_one(signed):
    signed.key.unlink()
    assert "openssl pkey -in key.pem -pubout -out key.pub" in signed.refused()


def test_a_key_of_another_kind_or_a_private_one_is_refused(signed):
    signed.key.write_bytes(public_pem(ec.generate_private_key(ec.SECP256R1())))
    assert "not of Ed25519" in signed.refused()
    signed.key.write_bytes(private_pem(signed.private))
    assert "not a public key" in signed.refused()


@given(data=st.binary(max_size=2 * SIGNATURE_BYTES))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_as_a_signature_are_refused_in_one_line(signed, data):
    signed.signature.write_bytes(data)
    reason = signed.refused()
    assert (
        f"{len(data)} bytes, a raw" in reason
        if len(data) != SIGNATURE_BYTES
        else "no signature of these bytes" in reason
    )


@given(data=st.binary(max_size=200) | st.binary(max_size=90).map(lambda b: b"-----BEGIN PUBLIC KEY-----\n" + b))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_as_a_key_are_refused_in_one_line(signed, data):
    signed.key.write_bytes(data)
    assert "not a public key in PEM form" in signed.refused()


def test_without_cryptography_the_error_says_what_to_install(signed, monkeypatch):
    monkeypatch.setitem(sys.modules, "cryptography.exceptions", None)
    assert "pip install cryptography" in signed.refused()
