"""How long the worker has been at a recalibration, and how much longer its stage will take."""

from __future__ import annotations

from daemon.states import IN_WORK, State


class WorkTime:
    """Times in s; None where no worker is at work, `remaining` also before the stage has reported progress."""

    def __init__(self) -> None:
        self.elapsed: float | None = None
        self.remaining: float | None = None
        self._stage: State | None = None
        self._began = self._stage_began = self._stage_ends = 0.0
        self._progress = 0.0

    def update(self, state: State, progress: float, now: float) -> None:
        """Take in the state and its progress, 0 to 1. now: monotonic clock, s."""
        if state not in IN_WORK:
            self.elapsed = self.remaining = self._stage = None
            return
        if self._stage is None:
            self._began = now
        if state is not self._stage:
            self._stage, self._stage_began, self._progress, self.remaining = state, now, 0.0, None
        if progress > self._progress:
            self._progress = progress
            self._stage_ends = self._stage_began + (now - self._stage_began) / progress
        self.elapsed = now - self._began
        if self._progress:
            self.remaining = max(0.0, self._stage_ends - now)
