"""The bounded memory of one sensor's frames, as drift checks and fits read it.

The frames of a camera are not independent: a parked car sees one scene for an hour. So two memories are kept. Drift
checks read the newest frames. Fits read a longer memory, in which no class that the model names takes more than its
share, and old frames grow sparse instead of going all at once.
"""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np

# Of the memory for one class. Not the fair share: a drifted camera's frames are misnamed, and a memory balanced by
# such names shows another world. Clean CIFAR-10 frames chosen so had a drift score of 0.8 instead of 0.4.
MAX_SHARE = 0.25
FAIR_SHARES = 2  # a class may always have so many times its fair share: of two classes, each may have it all
OVER_SHARE_S = 1.0  # between two frames of a class that has its share: it may be all there is to see
HORIZON_S = 3600.0  # older frames are the first to go: light and dirt were others then
ALARMING = ("blank", "saturated")  # nothing to fit to, but a covered lens must not look as well as before

Screen = Callable[[np.ndarray, float], str | None]


class Kept(NamedTuple):
    number: int  # of the frame, among all that were added
    time: float
    label: int | None
    image: np.ndarray


class Memory:
    """At most `capacity` frames, oldest first, spread over classes and time."""

    def __init__(self, capacity: int, frames: Iterable[Kept] = ()):
        self.frames: list[Kept] = []
        self._capacity = capacity
        self._counts: Counter[int | None] = Counter()  # by label
        self._newest: dict[int | None, float] = {}  # time of the newest frame, by label
        for frame in frames:
            self.add(frame)

    def wants(self, label: int | None, now: float) -> bool:
        """A class that has its share fills what is left at walking pace, so that others find room."""
        if label is None or len(self.frames) >= self._capacity or self._counts[label] < MAX_SHARE * self._capacity:
            return True
        return now - self._newest[label] >= OVER_SHARE_S

    def add(self, frame: Kept) -> None:
        self.frames.append(frame)
        self._counts[frame.label] += 1
        self._newest[frame.label] = frame.time
        if len(self.frames) > self._capacity:
            dropped = self.frames.pop(self._least_missed(frame.time))
            self._counts[dropped.label] -= 1

    def _least_missed(self, now: float) -> int:
        """Index of the frame to drop: one too old, else one where frames are dense, of a class over its share if any
        is."""
        largest = max(self._counts, key=self._counts.__getitem__)
        if now - self.frames[0].time > HORIZON_S or self._counts[largest] == 1:
            return 0
        held = sum(count > 0 for count in self._counts.values())
        if self._counts[largest] > max(MAX_SHARE, FAIR_SHARES / held) * len(self.frames):
            droppable = [i for i, frame in enumerate(self.frames) if frame.label == largest]
        else:  # the last of its class stays
            droppable = [i for i, frame in enumerate(self.frames) if self._counts[frame.label] > 1]
        return droppable[_densest([self.frames[i].number for i in droppable])]


def _densest(numbers: list[int]) -> int:
    """Index of the number whose neighbours are nearest to each other, the first of several: thinning stays even."""
    if len(numbers) < 3:
        return 0
    spaced = np.array(numbers)
    return 1 + int((spaced[2:] - spaced[:-2]).argmin())


class Reservoir:
    """Keeps at most `capacity` frames in all: the newest `window` for drift checks, and the memory for fits.

    Takes 1 frame in `every`, and of those what `screen` finds no reason against. Filled by the frame thread, read by
    others.
    """

    def __init__(self, capacity: int, every: int = 1, *, window: int = 0, screen: Screen | None = None):
        self._newest: deque[np.ndarray] = deque(maxlen=window)
        self._room = capacity - window
        self._memory = Memory(self._room)
        self._every = every
        self._screen = screen
        self._lock = threading.Lock()
        self._seen = 0
        self.added = 0  # frames taken since the start, never reset
        self.refused: Counter[str] = Counter()  # by reason, frames that are in no memory, since the last mark

    def add(self, image: np.ndarray, now: float, label: int | None = None) -> str | None:
        """Offer a preprocessed frame (h, w, C) uint8, and its class if the model names one; why it is refused, if so.

        The array is kept, not copied.
        """
        self._seen += 1
        if self._seen % self._every:
            return None
        reason = self._screen(image, now) if self._screen else None
        if reason is not None:
            self.refused[reason] += 1
        if reason is not None and reason not in ALARMING:
            return reason
        with self._lock:
            self.added += 1
            self._newest.append(image)
            if reason is None and self._room and self._memory.wants(label, now):
                self._memory.add(Kept(self.added, now, label, image))
        return reason

    def mark(self) -> list[Kept]:
        """Forget what is no use for fits any more, as the frames before show another camera; returns it."""
        self.refused = Counter()
        with self._lock:
            before, self._memory = self._memory, Memory(self._room)
        return before.frames

    @property
    def collected(self) -> int:
        """Frames usable for a fit: those in the memory, all of them after the last mark."""
        with self._lock:
            return len(self._memory.frames)

    def latest(self, count: int) -> np.ndarray:
        """A copy of the newest frames, at most `count` and `window` of them: (n, h, w, C), oldest first; n may be 0."""
        with self._lock:
            images = list(self._newest)
        return _stack(images[max(0, len(images) - count) :])

    def sample(self, count: int) -> np.ndarray:
        """A copy of frames for a fit, at most `count`, spread over classes and time: (n, h, w, C), oldest first."""
        with self._lock:
            frames = list(self._memory.frames)
        if len(frames) > count:
            frames = Memory(count, frames).frames
        return _stack([frame.image for frame in frames])


def _stack(images: list[np.ndarray]) -> np.ndarray:
    return np.stack(images) if images else np.empty((0, 0, 0, 0), np.uint8)
