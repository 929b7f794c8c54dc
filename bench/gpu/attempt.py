"""Keep a long run going: note failures in their rows, and stop within a budget of time."""

from __future__ import annotations

import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from deploy.backends.protocol import BackendUnavailable
from deploy.model.program import first_line

NOT_RUN = "not_run"  # key of the reason in a row without measurements


class OutOfTime(Exception):
    """A measurement would take longer than the time that is left."""


class Budget:
    """Limits the time of the whole run."""

    def __init__(self, seconds: float):
        self._end = time.monotonic() + seconds

    def left(self) -> float:
        return self._end - time.monotonic()

    def require(self, seconds: float) -> None:
        """Raise OutOfTime where fewer seconds are left."""
        if self.left() < seconds:
            raise OutOfTime(f"it may take {seconds:.0f} s, and {max(0.0, self.left()):.0f} s were left")


@contextmanager
def attempt(name: str, row: dict[str, Any]) -> Iterator[None]:
    """Run the context; where it fails, note the reason in the row and go on."""
    try:
        yield
    except (BackendUnavailable, OutOfTime) as error:
        _note(name, row, first_line(error))
    except Exception as error:  # any library may fail in any way; finished rows must not be lost
        traceback.print_exc(file=sys.stderr)
        _note(name, row, f"{type(error).__name__}: {first_line(error)}")


def ran(row: dict[str, Any]) -> bool:
    """Tell whether the row holds measurements."""
    return NOT_RUN not in row


def log_progress(text: str) -> None:
    """Print the time and what is measured now."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def _note(name: str, row: dict[str, Any], reason: str) -> None:
    row[NOT_RUN] = reason
    log_progress(f"{name}: not run: {reason}")
