"""Envelopes and their signatures, for the tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from daemon.recalibration.envelope import Envelope, EnvelopeDocument, HomogenizerLimits
from deploy.audit.signature import signature_path


def envelope_of(**homogenizer: Any) -> Envelope:
    """An envelope that limits homogenizers alone, by these names of calibrate.scoring.extent.Extent."""
    document = EnvelopeDocument(version=1, homogenizer=HomogenizerLimits(**homogenizer))
    return Envelope(Path("/etc/envelope.yaml"), "", False, document)


def sign(path: Path) -> Path:
    """Sign the file by a new key; returns the public key's file, beside it. Skips the test without `cryptography`."""
    ed25519 = pytest.importorskip("cryptography.hazmat.primitives.asymmetric.ed25519")
    private, key = ed25519.Ed25519PrivateKey.generate(), path.with_name("key.pub")
    signature_path(path).write_bytes(private.sign(path.read_bytes()))
    key.write_bytes(public_pem(private))
    return key


def public_pem(private: Any) -> bytes:
    from cryptography.hazmat.primitives import serialization  # an extra, and only signatures need it

    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return private.public_key().public_bytes(serialization.Encoding.PEM, form)
