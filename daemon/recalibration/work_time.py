"""How long the worker has been at a recalibration, and how much longer its stage will take."""

from __future__ import annotations

from daemon.states import IN_WORK, State


class WorkTime:
    """Times in s; None where no worker is at work, `remaining` also before two reports of progress in the stage.

    `remaining` is a bound: a stage that reaches its goal ends early.
    """

    def __init__(self) -> None:
        self.elapsed: float | None = None
        self.remaining: float | None = None
        self._stage: State | None = None
        self._began = self._ends = 0.0
        self._first: tuple[float, float] | None = None  # when the stage first reported progress, and how much
        self._progress = 0.0

    def update(self, state: State, progress: float, now: float) -> None:
        """Take in the state and its progress, 0 to 1. now: monotonic clock, s."""
        if state not in IN_WORK:
            self.elapsed = self.remaining = self._stage = None
            return
        if self._stage is None:
            self._began = now
        if state is not self._stage:
            self._stage, self._first, self._progress, self.remaining = state, None, 0.0, None
        if progress > self._progress:
            self._estimate(progress, now)
        self.elapsed = now - self._began
        if self.remaining is not None:
            self.remaining = max(0.0, self._ends - now)

    def _estimate(self, progress: float, now: float) -> None:
        """Estimate the end from the pace since the first report: what comes before it, as loading, is no measure."""
        self._progress = progress
        if self._first is None:
            self._first = now, progress
            return
        since, at_first = self._first
        self._ends = now + (1 - progress) * (now - since) / (progress - at_first)
        self.remaining = self._ends - now
