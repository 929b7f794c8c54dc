"""Finds the stored homogenizer that an operator names by its first digits."""

from __future__ import annotations

import re

from daemon.recalibration.state_machine import OrderRefused
from deploy.store.artefacts import FACTORY, ArtefactStore
from deploy.store.retention import StoredHomogenizer, stored_homogenizers

MIN_VERSION_DIGITS = 8  # of a version; `recald status` shows 12


def is_version(text: object) -> bool:
    """Return whether a text can name a homogenizer: "factory", or 8 of the digits of its version or more."""
    digits = f"[0-9a-f]{{{MIN_VERSION_DIGITS},64}}"
    return isinstance(text, str) and (text == FACTORY or re.fullmatch(digits, text) is not None)


def no_version(text: object) -> OrderRefused:
    """Return the refusal of a text that names no homogenizer."""
    return OrderRefused(f"{str(text)[:80]!r} is no version: give {MIN_VERSION_DIGITS} of its digits or more")


def find_stored(store: ArtefactStore, model: str, digits: object) -> StoredHomogenizer:
    """Return the one stored homogenizer for the model whose version begins so. Reads the disk. Raises OrderRefused."""
    if not is_version(digits):
        raise no_version(digits)
    assert isinstance(digits, str)
    if digits == FACTORY:
        raise OrderRefused("factory is not stored: `recald rollback` goes back to it, one step at a time")
    found = [stored for stored in stored_homogenizers(store) if stored.version.startswith(digits)]
    usable = [stored for stored in found if stored.model == model]
    if not usable:
        why = (
            "belongs to another model"
            if found
            else "is not stored: `recald history` and `recald report --list` name some"
        )
        raise OrderRefused(f"homogenizer {digits[:12]} {why}")
    if len(usable) > 1:
        raise OrderRefused(f"{len(usable)} stored homogenizers begin with {digits}: give more digits")
    return usable[0]
