"""Detects that a new homogenizer makes a frame take much longer through ρ and Φ than expected."""

from __future__ import annotations

from collections import deque
from statistics import median

MIN_LATENCY_FRAMES = 50  # fewer give no usable median
LATENCY_WINDOW_FRAMES = 300  # the newest: ten seconds at 30 a second
# Beside a fit a frame takes 1.4 times as long (bench swap), and even those frames are not counted.
MAX_LATENCY_RATIO = 2.0
MAX_ADDED_LATENCY_S = 0.002  # the path of a small network takes less than a hiccup of the scheduler


class LatencyMonitor:
    """Compares the median duration of frames after a swap with the one expected from the frames before it.

    Fed on the frame thread. Without MIN_LATENCY_FRAMES frames before the swap there is nothing to compare with.
    """

    def __init__(self) -> None:
        self.counting = True  # false during a fit, which takes processor time from whatever serves
        self._durations: deque[float] = deque(maxlen=LATENCY_WINDOW_FRAMES)
        self._expected: float | None = None

    def observe(self, seconds: float) -> None:
        """Add the duration of one frame through ρ and Φ."""
        if self.counting:
            self._durations.append(seconds)

    def swapped(self, added: float) -> None:
        """Start over for another homogenizer; its proof showed that it takes `added` s more than the one before."""
        known = len(self._durations) >= MIN_LATENCY_FRAMES
        self._expected = median(self._durations) + max(added, 0.0) if known else None
        self._durations.clear()

    @property
    def slower(self) -> str:
        """How much longer than expected a frame takes, as text; "" where it does not."""
        if self._expected is None or len(self._durations) < MIN_LATENCY_FRAMES:
            return ""
        measured = median(self._durations)
        if measured <= max(MAX_LATENCY_RATIO * self._expected, self._expected + MAX_ADDED_LATENCY_S):
            return ""
        return f"a frame takes {1e3 * measured:.1f} ms, {1e3 * self._expected:.1f} were expected"
