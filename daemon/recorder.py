"""Writes the audit log away from the frames. Where it cannot be written serving goes on, and nothing is swapped."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

from daemon.metrics import Metrics
from deploy.audit import AuditError, AuditLog

MOST_PENDING = 10_000  # records that wait for a disk that is full; then the oldest are given up

# Told to the journal with their anchors: against these `recald verify --anchor` finds even a log cut short or replaced.
ANCHORED = ("start", "swap", "rollback", "stop")

log = logging.getLogger(__name__)
Entry = tuple[str, str, dict[str, Any]]


def audit_path(state: Path) -> Path:
    return state / "audit.sqlite"


class Recorder:
    """Called on the frame thread with a sensor, an event and its details; `background`, one thread, writes in order."""

    def __init__(self, open_audit: Callable[[], AuditLog], background: Executor, metrics: Metrics):
        self._open = open_audit
        self._background = background
        self._metrics = metrics
        self._audit: AuditLog | None = None
        self._pending: deque[Entry] = deque(maxlen=MOST_PENDING)
        self.failing = False

    def __call__(self, sensor: str, event: str, details: dict[str, Any]) -> None:
        self._background.submit(self._write, (sensor, event, details))

    def retry(self) -> None:
        """Try again what could not be written."""
        if self.failing:
            self._background.submit(self._write)

    def close(self) -> None:
        """After the last record was written."""
        if self._audit is not None:
            self._audit.close()

    def _write(self, *entries: Entry) -> None:
        self._pending.extend(entries)
        try:
            self._write_pending()
        except (AuditError, ValueError) as error:
            self._metrics.audit_failures.inc()
            if not self.failing:
                log.warning("nothing is swapped until the audit log can be written: %s", error)
            self.failing = True
        else:
            self.failing = False

    def _write_pending(self) -> None:
        if self._audit is None:
            self._audit = self._open()
        while self._pending:
            record = self._audit.append(*self._pending[0])
            self._pending.popleft()
            if record.event in ANCHORED:
                log.info("audit record %d:%s, %s %s", *record.anchor, record.sensor, record.event)
            self._metrics.audit_records.inc()
