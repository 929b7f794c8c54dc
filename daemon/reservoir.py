"""The bounded memory of recent frames of one sensor, as fits and drift checks read it."""

from __future__ import annotations

import threading
from collections import deque

import numpy as np


class Reservoir:
    """Keeps 1 frame in `every`, the newest `capacity` of them. Filled by the frame thread, read by others."""

    def __init__(self, capacity: int, every: int = 1):
        self._frames: deque[np.ndarray] = deque(maxlen=capacity)
        self._every = every
        self._lock = threading.Lock()
        self._seen = 0
        self.added = 0  # frames kept since the start, never reset
        self._mark = 0

    def add(self, image: np.ndarray) -> None:
        """Offer a preprocessed frame (h, w, C) uint8; the array is kept, not copied."""
        self._seen += 1
        if self._seen % self._every:
            return
        with self._lock:
            self._frames.append(image)
            self.added += 1

    def mark(self) -> None:
        """What is collected counts from now on: the frames before show another camera."""
        self._mark = self.added

    @property
    def collected(self) -> int:
        """Frames held since the last mark."""
        return min(self.added - self._mark, len(self._frames))

    def latest(self, count: int) -> np.ndarray:
        """A copy of the newest frames, at most `count` of them: (n, h, w, C), oldest first; n may be 0."""
        with self._lock:
            frames = list(self._frames)
        frames = frames[max(0, len(frames) - count) :]
        return np.stack(frames) if frames else np.empty((0, 0, 0, 0), np.uint8)
