"""Writes the audit log away from the frames. Where it cannot be written serving goes on, and nothing is swapped."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Any, NamedTuple

from daemon.config import DAY
from daemon.metrics import Metrics
from deploy.audit.log import AuditLog

MOST_PENDING = 10_000  # records that wait for a disk that is full; what comes then is given up, and counted
KEPT_S = 730 * DAY  # laws ask for six months and more
KEPT_RECORDS = 50_000  # whatever their age, some 25 MB: a wrong clock must not remove what laws ask for
# Told to the journal with their anchors: against these `recald verify --anchor` finds even a log cut short or replaced.
ANCHORED = ("start", "swap", "rollback", "stop")

log = logging.getLogger(__name__)


class Entry(NamedTuple):
    """What happened, and when: `at` is s since the epoch."""

    sensor: str
    event: str
    details: dict[str, Any]
    at: float


class AuditWriter:
    """Called on the frame thread with a sensor, an event and its details; `background`, one thread, writes in order."""

    def __init__(self, open_audit: Callable[[], AuditLog], background: Executor, metrics: Metrics):
        self._open = open_audit
        self._background = background
        self._metrics = metrics
        self._audit: AuditLog | None = None
        self._pending: deque[Entry] = deque()
        self._lost = 0
        self._queued = False  # one run of _write takes all that is pending
        self.failing = False

    def __call__(self, sensor: str, event: str, details: dict[str, Any]) -> None:
        if len(self._pending) < MOST_PENDING:
            self._pending.append(Entry(sensor, event, details, time.time()))
        else:
            self._lost += 1
        self._queue()

    def retry(self) -> None:
        """Try again what could not be written."""
        if self.failing:
            self._queue()

    def close(self) -> None:
        """After the last record was written."""
        if self._audit is not None:
            self._audit.close()

    def _queue(self) -> None:
        if not self._queued:
            self._queued = True
            self._background.submit(self._write)

    def _write(self) -> None:
        self._queued = False  # first: what is pending from now on needs another run
        try:
            self._write_pending()
        except Exception as error:  # whatever it is, what happens now could not be told later
            self._metrics.audit_failures.inc()
            if not self.failing:
                log.warning("nothing is swapped until the audit log can be written: %s", error)
            self.failing = True
        else:
            self.failing = False

    def _write_pending(self) -> None:
        if self._audit is None:
            self._audit = self._open()
            self._audit.prune(time.time() - KEPT_S, KEPT_RECORDS)
        while self._pending:
            self._append(self._audit, self._pending[0])
            self._pending.popleft()
        if self._lost:
            self._append(self._audit, Entry("", "records lost", {"count": self._lost}, time.time()))
            self._lost = 0

    def _append(self, audit: AuditLog, entry: Entry) -> None:
        try:
            record = audit.append(*entry)
        except ValueError as error:  # it would never fit, and all that follow would wait for it
            log.warning("a record of %s cannot be written as it is: %s", entry.event, error)
            record = audit.append(entry.sensor, entry.event, {"not recorded": str(error)}, entry.at)
        self._metrics.audit_records.inc()
        if record.event in ANCHORED:
            log.info("audit record %d:%s, %s %s", *record.anchor, record.sensor, record.event)
