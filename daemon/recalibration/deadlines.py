"""Tells when a state of the state machine has lasted too long."""

from __future__ import annotations

from daemon.config import RecalibrateConfig
from daemon.recalibration.decisions import Facts
from daemon.settings.values import DAY, HOUR, MINUTE
from daemon.states import IN_WORK, WITH_CANDIDATE, State

MIN_COMPARISONS = 3  # before a candidate leaves the shadow, and before a probation ends
MIN_COLLECT_DEADLINE_S = HOUR  # frames that come more slowly add up over several tries
COLLECT_DEADLINE_RATIO = 4.0  # to `recalibrate.collect`
WORK_GRACE_S = 10 * MINUTE  # after `recalibrate.timeout`: to start a worker, and to load what it built
MIN_COMPARISON_DEADLINE_S = 10 * MINUTE  # since the last comparison, if frames for MIN_COMPARISONS came
APPROVAL_DEADLINE_S = 7 * DAY


class Deadlines:
    """Counts the seconds of a state in which it can go on. States at rest end by timer or back-off."""

    def __init__(self, config: RecalibrateConfig, now: float):
        self._config = config
        self._entered = self._last = now
        self._seconds = self._uncompared_s = 0.0

    def restart(self, now: float) -> None:
        """Note that a state begins."""
        self._entered, self._seconds, self._uncompared_s = now, 0.0, 0.0

    def compared(self) -> None:
        """Note a comparison of the challenger."""
        self._uncompared_s = 0.0

    def count_time(self, now: float, stands_still: bool) -> None:
        """Count the time since the last call. stands_still: the camera has stopped, or a fit waits for its turn."""
        elapsed, self._last = now - self._last, now
        if not stands_still:
            self._seconds += elapsed
            self._uncompared_s += elapsed

    def passed(self, state: State, now: float, facts: Facts) -> str:
        """Return why the state must end, or ""."""
        if state is State.COLLECTING:
            return self._collecting(facts)
        if state in IN_WORK:  # a stopped camera does not stop a worker
            late = now - self._entered > self._config.timeout + WORK_GRACE_S
            return f"no result {WORK_GRACE_S / MINUTE:.0f} min after recalibrate.timeout" if late else ""
        if state is State.AWAITING_APPROVAL and self._seconds > APPROVAL_DEADLINE_S:
            return f"nobody approved it for {APPROVAL_DEADLINE_S / DAY:.0f} days"
        return self._comparing(facts) if state in (*WITH_CANDIDATE, State.PROBATION) else ""

    def _collecting(self, facts: Facts) -> str:
        if self._seconds <= max(MIN_COLLECT_DEADLINE_S, COLLECT_DEADLINE_RATIO * self._config.collect):
            return ""
        return f"{facts.collected} of {self._config.frames} frames came in {self._seconds / MINUTE:.0f} min"

    def _comparing(self, facts: Facts) -> str:
        limit = max(MIN_COMPARISON_DEADLINE_S, (MIN_COMPARISONS + 1) * facts.check_period)
        overdue = facts.missed_comparisons >= MIN_COMPARISONS and self._uncompared_s > limit
        return f"no comparison on new frames for {self._uncompared_s / MINUTE:.0f} min" if overdue else ""
