"""Ed25519 signatures beside files, as OpenSSL writes them: raw, 64 bytes, over the bytes of the file as they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from calibrate.errors import RecaldError

SUFFIX = ".sig"
SIZE = 64  # bytes
INSTALL = "pip install cryptography, or recald with its extra [signature]"


class SignatureError(RecaldError):
    """A signature or key that is missing, unusable or wrong: which, and what to do."""


def signature_path(path: Path) -> Path:
    """Where the signature of the file `path` lies: envelope.yaml -> envelope.yaml.sig."""
    return path.with_name(path.name + SUFFIX)


def check_signature(path: Path, data: bytes, key: Path) -> None:
    """SignatureError unless the signature beside `path` is of its bytes, `data`, by the public key in `key`."""
    try:
        from cryptography.exceptions import InvalidSignature
    except ImportError as error:
        raise SignatureError(f"{key}: signatures cannot be checked without cryptography: {INSTALL}") from error
    signature = _read(signature_path(path), f"sign it: {_sign_command(path)}")
    if len(signature) != SIZE:
        raise SignatureError(
            f"{signature_path(path)}: {len(signature)} bytes, a raw Ed25519 signature has {SIZE}: {_sign_command(path)}"
        )
    public = _public_key(key)
    try:
        public.verify(signature, data)
    except InvalidSignature:
        raise SignatureError(
            f"{path}: {signature_path(path).name} is no signature of these bytes by {key}: somebody changed one of the "
            f"three; look at the file, then sign it again: {_sign_command(path)}"
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
        return path.read_bytes()
    except OSError as error:
        raise SignatureError(f"{path}: cannot be read: {error.strerror}: {advice}") from error


def _sign_command(path: Path) -> str:
    return f"openssl pkeyutl -sign -inkey key.pem -rawin -in {path.name} -out {signature_path(path).name}"
