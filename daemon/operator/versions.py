"""Versions and digests as people compare and copy them."""

from __future__ import annotations

from typing import Any

SHOWN_DIGITS = 12  # of the 64 of a SHA-256; `--version` takes them as they are shown


def short_version(value: Any) -> str:
    """Return the first digits of a version or digest, and anything else as it is."""
    text = str(value)
    return text[:SHOWN_DIGITS] if len(text) == 64 else text
