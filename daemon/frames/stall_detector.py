"""Whether a camera has stopped: its frames come at a pace of their own, and silence is what is long for it."""

from __future__ import annotations

from collections import deque

GAPS = 64  # between the newest frames
LONG = 3.0  # times the longest of them but one: a single outage is no habit, frames that come in bursts are
LEAST_S = 5.0


class StallDetector:
    """Fed with the times (s, monotonic) of one sensor's frames; begins to wait at `since`, or with the first frame."""

    def __init__(self, since: float | None = None) -> None:
        self._last = since
        self._gaps: deque[float] = deque(maxlen=GAPS)

    def arrived(self, now: float) -> None:
        """A frame came."""
        if self._last is not None:
            self._gaps.append(now - self._last)
        self._last = now

    def silence(self, now: float) -> float:
        """For how long no frame came (s), 0 while that is nothing unusual."""
        passed = 0.0 if self._last is None else now - self._last
        return passed if passed > LEAST_S and passed > LONG * self._usual() else 0.0

    def _usual(self) -> float:
        return sorted(self._gaps)[-2] if len(self._gaps) > 1 else 0.0
