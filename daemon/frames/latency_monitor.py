"""Whether a homogenizer serves slower than it should: a frame's way through ρ and Φ, before and after a swap."""

from __future__ import annotations

from collections import deque
from statistics import median

FRAMES = 50  # of which a median tells, at least
KEPT = 300  # the newest: ten seconds at 30 a second
# Beside a fit frames take 1.4 times as long (bench swap), and even those are not counted.
FACTOR = 2.0
MARGIN_S = 0.002  # the path of a small network takes less than a scheduler's hiccup


class LatencyMonitor:
    """Fed with durations (s) on the frame thread. Nothing is told where nothing was known before the swap."""

    def __init__(self) -> None:
        self.counting = True  # not while a fit takes the processor from whatever serves
        self._took: deque[float] = deque(maxlen=KEPT)
        self._expected: float | None = None

    def served(self, seconds: float) -> None:
        """A frame was answered, in so long."""
        if self.counting:
            self._took.append(seconds)

    def swapped(self, added: float) -> None:
        """Another homogenizer serves, which was seen to take `added` s more than the one before when it was proven."""
        known = len(self._took) >= FRAMES
        self._expected = median(self._took) + max(added, 0.0) if known else None
        self._took.clear()

    @property
    def slower(self) -> str:
        """How much slower than expected what serves is, "" where it is not."""
        if self._expected is None or len(self._took) < FRAMES:
            return ""
        took = median(self._took)
        if took <= max(FACTOR * self._expected, self._expected + MARGIN_S):
            return ""
        return f"a frame takes {1e3 * took:.1f} ms, {1e3 * self._expected:.1f} were expected"
