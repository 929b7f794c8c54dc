"""The newest frame of a sensor as people may see it: only where the configuration allows that."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any, NamedTuple


class PageFrame(NamedTuple):
    """A frame as two PNG files. mark: another one for each frame. restored: as ρ makes it; None without ρ."""

    mark: str
    received: bytes
    restored: bytes | None

    @classmethod
    def of(cls, scores: Mapping[str, Any], added: int) -> PageFrame | None:
        """Return the frame in the scores of a drift check; None where none was asked for."""
        shown = scores.get("shown")
        if shown is None:
            return None
        received, restored = (None if one is None else base64.b64decode(one) for one in shown)
        return None if received is None else cls(str(added), received, restored)
