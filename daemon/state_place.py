"""Where state is kept unless the configuration says it, and where the first releases kept it."""

from __future__ import annotations

import os
from pathlib import Path

SYSTEM_STATE = Path("/var/lib/recald")


def default_state_directory() -> Path:
    """Return where state is kept unless the configuration says it. Raises ValueError for a user without a home."""
    if given := os.environ.get("STATE_DIRECTORY", "").partition(":")[0]:
        return Path(given)
    if os.geteuid() == 0:
        return SYSTEM_STATE
    base = Path(os.environ.get("XDG_STATE_HOME", ""))
    try:
        return (base if base.is_absolute() else Path.home() / ".local" / "state") / "recald"
    except RuntimeError:
        raise ValueError("this user has no home: set state.directory") from None


def earlier_state_directory(directory: Path, given: bool) -> Path:
    """Return where the first releases kept the state: a relative path started at the working directory.

    given: the configuration names it. The default was the same for every user then.
    """
    return directory if given or os.environ.get("STATE_DIRECTORY") else SYSTEM_STATE
