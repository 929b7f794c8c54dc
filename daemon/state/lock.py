"""The lock on the state directory: one daemon at a time."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path


def lock_state(directory: Path) -> int:
    """Lock the state directory, created where it is missing; return the descriptor that holds the lock until closed.

    Raises OSError where another daemon holds it. The directory itself is locked, not a file in it, so that a full
    disk does not keep the daemon from starting.
    """
    directory.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise OSError(
            error.errno,
            f"another recald uses {directory}: stop it first, or set another state.directory",
        ) from error
    return descriptor
