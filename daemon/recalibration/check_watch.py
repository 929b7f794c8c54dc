"""Tells when the drift checks of a sensor have stopped although frames come, and why."""

from __future__ import annotations

from daemon.worker.client import WORKER_START_TIMEOUT_S

CHECK_PASS_TIMEOUT_S = 60.0  # for each forward pass of a window
MAX_FIRST_CHECK_S = WORKER_START_TIMEOUT_S + CHECK_PASS_TIMEOUT_S  # what takes longer fails, and is told as a failure
MIN_OVERDUE_S = 30.0  # a worker that died is started again within 10 s, and loads the model in a few
MAX_MISSED_PERIODS = 3.0  # the time from one check to the next varies with the load of the machine
NEVER_ENDED = "none has ended yet"


class CheckWatch:
    """Fed on the frame thread. Times are seconds of one monotonic clock.

    A check is due while there are frames that none has scored. Without new frames nothing is due, so that a stopped
    or slow camera is no fault of the checks.
    """

    def __init__(self) -> None:
        self._due_since: float | None = None
        self.period = 0.0  # s from one check to the next; 0 before the first success
        self._failure = NEVER_ENDED

    def succeeded(self, period: float) -> None:
        """Note a check that ended well. period: s in which the next one is expected."""
        self._due_since, self.period, self._failure = None, period, "they do not end"

    def failed(self, reason: str) -> bool:
        """Note a check that failed; return whether this reason is a new one."""
        before, self._failure = self._failure, reason
        return reason != before

    def overdue(self, due: bool, now: float) -> str:
        """Return why there is no drift score, or "". due: there are frames that no check has scored."""
        if not due:
            self._due_since = None
        elif self._due_since is None:
            self._due_since = now
        waited = 0.0 if self._due_since is None else now - self._due_since
        limit = MAX_FIRST_CHECK_S if self._failure == NEVER_ENDED else MIN_OVERDUE_S
        if waited <= max(limit, MAX_MISSED_PERIODS * self.period):
            return ""
        return f"no drift check for {waited:.0f} s: {self._failure}"
