"""Counts a sensor's fits and swaps of the last 24 hours."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from daemon.config import RecalibrateConfig
from daemon.settings.values import DAY


class BudgetLeft(NamedTuple):
    """How many fits and swaps may still begin."""

    fits: int
    swaps: int


class Budget:
    """What `fits_a_day` and `swaps_a_day` leave. Times are seconds of one monotonic clock."""

    def __init__(self, config: RecalibrateConfig):
        self._config = config
        self._fits: deque[float] = deque()
        self._swaps: deque[float] = deque()

    def restore(self, fits: Sequence[float], swaps: Sequence[float]) -> None:
        """Count the fits and swaps from before a restart. Times, oldest first; they may lie before time 0."""
        self._fits.extendleft(reversed(fits))
        self._swaps.extendleft(reversed(swaps))

    def count_fit(self, now: float) -> None:
        """Count a fit that begins."""
        self._fits.append(now)

    def count_swap(self, now: float) -> None:
        """Count a swap to a fitted homogenizer."""
        self._swaps.append(now)

    def is_spent(self, now: float) -> bool:
        """Return whether the last 24 h have used up the fits or the swaps of a day."""
        return min(self.left(now)) == 0

    def left(self, now: float) -> BudgetLeft:
        """Return what the last 24 h have left of the fits and the swaps of a day."""
        for times in (self._fits, self._swaps):
            while times and times[0] <= now - DAY:
                times.popleft()
        config = self._config
        used = zip((config.fits_a_day, config.swaps_a_day), (self._fits, self._swaps), strict=True)
        return BudgetLeft(*(max(0, allowed - len(times)) for allowed, times in used))
