"""Lets one in many equal events through, for warnings that senders could repeat a thousand times a second."""

from __future__ import annotations

import time
from collections.abc import Callable


class Throttle:
    """Says yes at most once in `interval` s; counts what came meanwhile. For one thread."""

    def __init__(self, interval: float = 60.0, clock: Callable[[], float] = time.monotonic):
        """clock: monotonic, s."""
        self._interval = interval
        self._clock = clock
        self._next = float("-inf")
        self._held_back = 0

    def passes(self) -> int:
        """Return how many events this one stands for, itself included; 0 where it must be held back."""
        self._held_back += 1
        now = self._clock()
        if now < self._next:
            return 0
        count, self._held_back, self._next = self._held_back, 0, now + self._interval
        return count
