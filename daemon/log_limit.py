"""Log to standard error, and let no warning flood the journal: a camera sends 30 frames a second."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable

MAX_ALIKE = 10  # warnings of one kind, with the same first argument, in one window
WINDOW_S = 60.0
MAX_KINDS = 1000  # counted at a time; arguments may come from outside


class RepeatLimit(logging.Filter):
    """Lets at most MAX_ALIKE warnings and errors of one kind pass in WINDOW_S; a later one says how many it left out.

    What is logged for information passes: anchors of the audit log are among it.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        super().__init__()
        self._clock = clock
        self._lock = threading.Lock()
        self._seen: dict[tuple[str, str, str], tuple[float, int]] = {}  # by kind: start of its window, and how many

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno < logging.WARNING:
            return True
        first = record.args[0] if isinstance(record.args, tuple) and record.args else ""
        kind = record.name, str(record.msg), str(first)
        with self._lock:
            now = self._clock()
            begun, count = self._seen.get(kind, (now, 0))
            left_out = 0
            if now - begun >= WINDOW_S:
                begun, count, left_out = now, 0, max(0, count - MAX_ALIKE)
            if len(self._seen) >= MAX_KINDS and kind not in self._seen:
                self._seen.clear()
            self._seen[kind] = begun, count + 1
        if left_out:
            record.msg, record.args = f"{record.getMessage()} ({left_out} more like it were left out)", ()
        return count < MAX_ALIKE


def log_to_stderr(style: str) -> None:
    """Log to standard error in this style, limited; does nothing where logging is set up already."""
    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(RepeatLimit())
    logging.basicConfig(format=style, handlers=[handler])
