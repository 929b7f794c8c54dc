"""NVIDIA's kernel driver, which an engine is built for and which there may be without a PyTorch that can use it."""

from __future__ import annotations

import re
from pathlib import Path

DRIVER = Path("/proc/driver/nvidia/version")


def nvidia_driver(path: Path = DRIVER) -> str | None:
    """Its version, such as 570.86.10; "of unknown version" where it does not say, None where there is none."""
    try:
        text = path.read_text()
    except OSError:
        return None
    found = re.search(r"\d+\.\d+(\.\d+)*", text)
    return found[0] if found else "of unknown version"
