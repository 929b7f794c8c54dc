"""Writes the audit log in the background. While it cannot be written, frames are served and nothing is swapped."""

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

MAX_PENDING_RECORDS = 10_000  # that wait for a full disk; later ones are dropped and counted
MIN_KEPT_S = 730 * DAY  # younger records are kept; laws ask for six months and more
MIN_KEPT_RECORDS = 50_000  # kept at any age, some 25 MB: a wrong clock must not remove what laws ask for
# Events whose anchor is logged to the journal, too. Checked against one of these anchors, `recald verify --anchor`
# finds even a log that was cut short or replaced.
ANCHORED_EVENTS = ("start", "swap", "rollback", "stop")

log = logging.getLogger(__name__)


class PendingRecord(NamedTuple):
    """A record that is not yet written; `at` is when it happened, s since the epoch."""

    sensor: str
    event: str
    details: dict[str, Any]
    at: float


class AuditWriter:
    """Takes records on the frame thread; `background`, an executor with one thread, writes them in order."""

    def __init__(self, open_audit: Callable[[], AuditLog], background: Executor, metrics: Metrics):
        """open_audit: called in the background for the first record; where it fails, again at each retry."""
        self._open = open_audit
        self._background = background
        self._metrics = metrics
        self._audit: AuditLog | None = None
        self._pending: deque[PendingRecord] = deque()
        self._lost = 0
        self._queued = False  # a run of _write is queued; one run writes all pending records
        self.failing = False  # the last run could not write

    def record(self, sensor: str, event: str, details: dict[str, Any]) -> None:
        """Add a record of now; `details` are plain values."""
        if len(self._pending) < MAX_PENDING_RECORDS:
            self._pending.append(PendingRecord(sensor, event, details, time.time()))
        else:
            self._lost += 1
        self._queue()

    def retry(self) -> None:
        """Try again to write what could not be written."""
        if self.failing:
            self._queue()

    def close(self) -> None:
        """Close the log; call it after the background has written the last record."""
        if self._audit is not None:
            self._audit.close()

    def _queue(self) -> None:
        if not self._queued:
            self._queued = True
            self._background.submit(self._write)

    def _write(self) -> None:
        """Write all pending records; a failure sets `failing` and is not raised."""
        self._queued = False  # before the work: a record that is added from now on needs another run
        try:
            self._write_pending()
        except Exception as error:  # of any kind: without a written log, nothing may be swapped
            self._metrics.audit_failures.inc()
            if not self.failing:
                log.warning("nothing is swapped until the audit log can be written: %s", error)
            self.failing = True
        else:
            self.failing = False

    def _write_pending(self) -> None:
        if self._audit is None:
            self._audit = self._open()
            self._audit.prune(time.time() - MIN_KEPT_S, MIN_KEPT_RECORDS)
        while self._pending:
            self._append(self._audit, self._pending[0])
            self._pending.popleft()  # after it was written: what fails stays pending
        if self._lost:
            self._append(self._audit, PendingRecord("", "records lost", {"count": self._lost}, time.time()))
            self._lost = 0

    def _append(self, audit: AuditLog, pending: PendingRecord) -> None:
        try:
            record = audit.append(*pending)
        except ValueError as error:  # no retry can write these details, and all later records would wait for them
            log.warning("a record of %s cannot be written as it is: %s", pending.event, error)
            record = audit.append(pending.sensor, pending.event, {"not recorded": str(error)}, pending.at)
        self._metrics.audit_records.inc()
        if record.event in ANCHORED_EVENTS:
            log.info("audit record %d:%s, %s %s", *record.anchor, record.sensor, record.event)
