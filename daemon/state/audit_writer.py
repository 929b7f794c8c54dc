"""Writes the audit log in the background. While it cannot be written, frames are served and no new homogenizer."""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Any, NamedTuple

from daemon.metrics import Metrics
from daemon.settings.values import DAY
from daemon.state.lock import StateMoved
from deploy.audit.chain import HIDDEN_EVENTS, AuditRecord
from deploy.audit.log import AuditLog

MAX_PENDING_RECORDS = 10_000  # that wait for a full disk; later ones are dropped and counted
CHECK_INTERVAL_S = 0.2  # between two checks that the log is still in its place
RETRY_INTERVAL_S = 1.0  # between two tries while it cannot be written
WRITE_POLL_S = 0.002  # between two looks whether the records are written
MAX_ANSWER_S = 2.0  # for a check; a disk that takes longer hangs
MAX_RECENT_RECORDS = 50  # kept in memory for people to look at
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

    def __init__(
        self,
        open_audit: Callable[[], AuditLog],
        background: Executor,
        metrics: Metrics,
        check_place: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ):
        """open_audit: called in the background for the first record; where it fails, again at each check.

        check_place: raises StateMoved where the state directory is no longer the claimed one. clock: monotonic, s.
        """
        self._open = open_audit
        self._background = background
        self._metrics = metrics
        self._check_place = check_place
        self._clock = clock
        self._audit: AuditLog | None = None
        self._pending: deque[PendingRecord] = deque()
        self._dropped = 0  # counted by the frame thread alone
        self._reported = 0  # how many of the dropped ones the log knows of; counted in the background alone
        self._queued = False  # a run of _write is queued; one run writes all pending records
        self._asked_at: float | None = None  # when the oldest run was queued that has not ended
        self._next_check = -math.inf
        self._problem = ""  # of the last run
        self.recent: tuple[AuditRecord, ...] = ()  # on the disk, the newest last; replaced, never changed
        self.state_moved = False  # the state directory is gone: what a fit makes could not be stored

    @property
    def problem(self) -> str:
        """Why nothing may be swapped: the log cannot be written, or does not answer; "" where all is well."""
        asked_at = self._asked_at  # read once: the background changes it
        waited = 0.0 if asked_at is None else self._clock() - asked_at
        if not self._problem and waited > MAX_ANSWER_S:
            return f"the disk has not answered for {waited:.0f} s"
        return self._problem

    @property
    def pending(self) -> bool:
        """Whether a record is not yet on the disk: a crash now would lose it."""
        return bool(self._pending) or self._dropped > self._reported

    def wait_until_written(self, timeout: float) -> None:
        """Return when no record is pending, the log cannot be written, or `timeout` s are over; for other threads."""
        deadline = self._clock() + timeout
        while self.pending and not self.problem and self._clock() < deadline:
            time.sleep(WRITE_POLL_S)

    def record(self, sensor: str, event: str, details: dict[str, Any]) -> None:
        """Add a record of now; `details` are plain values."""
        if len(self._pending) < MAX_PENDING_RECORDS:
            self._pending.append(PendingRecord(sensor, event, details, time.time()))
        else:
            self._dropped += 1
        self._queue()

    def check(self, now: float) -> None:
        """Check in the background that the log is in its place, and write what waits. now: of `clock`."""
        if now >= self._next_check:
            self._next_check = now + (RETRY_INTERVAL_S if self._problem else CHECK_INTERVAL_S)
            self._queue()

    def close(self) -> None:
        """Close the log; call it after the background has written the last record."""
        if self._audit is not None:
            self._audit.close()

    def _queue(self) -> None:
        self._asked_at = self._clock() if self._asked_at is None else self._asked_at
        if not self._queued:
            self._queued = True
            self._background.submit(self._write)

    def _write(self) -> None:
        """Write all pending records; a failure becomes the `problem` and is not raised."""
        self._queued = False  # before the work: a record that is added from now on needs another run
        try:
            self._check_place()
            self._write_pending()
        except Exception as error:  # of any kind: without a written log, nothing new may serve
            self._fail(error)
        else:
            self._succeed()
        self._asked_at = self._clock() if self._queued else None

    def _fail(self, error: Exception) -> None:
        self._metrics.audit_failures.inc()
        if str(error) != self._problem:
            log.warning("no new homogenizer serves until the audit log can be written: %s", error)
        self._problem, self.state_moved = str(error), isinstance(error, StateMoved)

    def _succeed(self) -> None:
        if self._problem:
            log.info("the audit log can be written again")
        self._problem, self.state_moved = "", False

    def _write_pending(self) -> None:
        if self._audit is None:
            self._audit = self._open()
            self._audit.prune(time.time() - MIN_KEPT_S, MIN_KEPT_RECORDS)
            self.recent = tuple(self._audit.records(limit=MAX_RECENT_RECORDS, exclude=HIDDEN_EVENTS))
        else:
            self._audit.check_place()
        while self._pending:
            self._append(self._audit, self._pending[0])
            self._pending.popleft()  # after it was written: what fails stays pending
        if lost := self._dropped - self._reported:
            self._append(self._audit, PendingRecord("", "records lost", {"count": lost}, time.time()))
            self._reported += lost

    def _append(self, audit: AuditLog, pending: PendingRecord) -> None:
        try:
            record = audit.append(*pending)
        except ValueError as error:  # no retry can write these details, and all later records would wait for them
            log.warning("a record of %s cannot be written as it is: %s", pending.event, error)
            record = audit.append(pending.sensor, pending.event, {"not recorded": str(error)}, pending.at)
        self._metrics.audit_records.inc()
        if record.event not in HIDDEN_EVENTS:
            self.recent = (*self.recent, record)[-MAX_RECENT_RECORDS:]
        if record.event in ANCHORED_EVENTS:
            log.info("audit record %d:%s, %s %s", *record.anchor, record.sensor, record.event)
