"""Check Ed25519 signatures that OpenSSL writes beside a file: raw, 64 bytes, over the bytes of the file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from calibrate.errors import RecaldError
from deploy.files import read_regular

SIGNATURE_SUFFIX = ".sig"
SIGNATURE_BYTES = 64
INSTALL_CRYPTOGRAPHY = "pip install cryptography, or recald with its extra [signature]"


class SignatureError(RecaldError):
    """A signature or a key is missing, unusable or wrong. The message says which one and what to do."""


def signature_path(path: Path) -> Path:
    """Where the signature of the file `path` lies: envelope.yaml -> envelope.yaml.sig."""
    return path.with_name(path.name + SIGNATURE_SUFFIX)


def check_signature(path: Path, data: bytes, key: Path) -> None:
    """Check that the file beside `path` is a signature of `data`, the bytes of `path`, made with the key in `key`.

    `key` holds the public key in PEM form. Raises SignatureError.
    """
    try:
        from cryptography.exceptions import InvalidSignature
    except ImportError as error:
        raise SignatureError(
            f"{key}: signatures cannot be checked without cryptography: {INSTALL_CRYPTOGRAPHY}"
        ) from error
    signature = _read(signature_path(path), f"sign it: {_sign_command(path)}")
    if len(signature) != SIGNATURE_BYTES:
        raise SignatureError(
            f"{signature_path(path)}: {len(signature)} bytes, a raw Ed25519 signature has {SIGNATURE_BYTES}: "
            f"{_sign_command(path)}"
        )
    public = _public_key(key)
    try:
        public.verify(signature, data)
    except InvalidSignature:
        raise SignatureError(
            f"{path}: {signature_path(path).name} is no signature of these bytes by {key}: one of the three files was "
            f"changed; check the content of {path.name}, then sign it again: {_sign_command(path)}"
        ) from None


def _public_key(path: Path) -> Any:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    advice = f"write it with: openssl pkey -in key.pem -pubout -out {path.name}"
    try:
        key = load_pem_public_key(_read(path, advice))
    except (ValueError, UnsupportedAlgorithm):
        raise SignatureError(f"{path}: not a public key in PEM form: {advice}") from None
    if not isinstance(key, Ed25519PublicKey):
        raise SignatureError(f"{path}: a public key, but not of Ed25519: openssl genpkey -algorithm ed25519 makes one")
    return key


def _read(path: Path, advice: str) -> bytes:
    try:
        return read_regular(path)
    except OSError as error:
        raise SignatureError(f"{path}: cannot be read: {error.strerror}: {advice}") from error


def _sign_command(path: Path) -> str:
    return f"openssl pkeyutl -sign -inkey key.pem -rawin -in {path.name} -out {signature_path(path).name}"
