"""Detects a stopped camera: no frame for 5 s and 3 times its usual longest gap between frames."""

from __future__ import annotations

from collections import deque

MIN_STALL_S = 5.0
MIN_STALL_RATIO = 3.0  # to the usual longest gap: a camera that sends bursts is silent between them
GAP_WINDOW = 64  # the newest gaps between frames


class StallDetector:
    """Fed with the arrival times (monotonic clock, s) of one sensor's frames.

    Waits for the first frame from `since` on; without it, the first frame starts the wait for the next.
    """

    def __init__(self, since: float | None = None) -> None:
        self._last = since
        self.newest: float | None = None  # when the newest frame arrived; None: none has
        self._gaps: deque[float] = deque(maxlen=GAP_WINDOW)

    def arrived(self, now: float) -> None:
        """Note that a frame arrived."""
        if self._last is not None:
            self._gaps.append(now - self._last)
        self._last = self.newest = now

    def silence(self, now: float) -> float:
        """Return for how long no frame has arrived (s), or 0 while that is usual for this camera."""
        if self._last is None:
            return 0.0
        usual = sorted(self._gaps)[-2] if len(self._gaps) > 1 else 0.0  # not the longest: one outage is no habit
        silence = now - self._last
        return silence if silence > MIN_STALL_S and silence > MIN_STALL_RATIO * usual else 0.0
