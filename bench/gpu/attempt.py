"""Measuring on a machine that is seldom there: what fails is noted and the rest goes on, within the time there is."""

from __future__ import annotations

import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from deploy.backends.protocol import BackendUnavailable
from deploy.model.program import first_line

NOT_RUN = "not_run"  # the key under which a row says why it holds nothing


class OutOfTime(Exception):
    """What would take too long for the time that is left."""


class Budget:
    """The seconds that the whole run may take."""

    def __init__(self, seconds: float):
        self._end = time.monotonic() + seconds

    def left(self) -> float:
        return self._end - time.monotonic()

    def require(self, seconds: float) -> None:
        """Raise OutOfTime where fewer are left."""
        if self.left() < seconds:
            raise OutOfTime(f"it may take {seconds:.0f} s, and {max(0.0, self.left()):.0f} s were left")


@contextmanager
def attempt(what: str, row: dict[str, Any]) -> Iterator[None]:
    """Note in the row why this failed, and go on."""
    try:
        yield
    except (BackendUnavailable, OutOfTime) as error:
        _note(what, row, first_line(error))
    except Exception as error:  # a library may raise whatever it likes; what was measured must not be lost for it
        traceback.print_exc(file=sys.stderr)
        _note(what, row, f"{type(error).__name__}: {first_line(error)}")


def ran(row: dict[str, Any]) -> bool:
    return NOT_RUN not in row


def say(what: str) -> None:
    """How far it is, for whoever waits."""
    print(f"{time.strftime('%H:%M:%S')} {what}", file=sys.stderr, flush=True)


def _note(what: str, row: dict[str, Any], reason: str) -> None:
    row[NOT_RUN] = reason
    say(f"{what}: not run: {reason}")
