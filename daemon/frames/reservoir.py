"""The bounded memory of one sensor's frames, for drift checks and for fits.

The frames of a camera are not independent: a parked car sees one scene for an hour. So there are two memories. Drift
checks read the newest frames. Fits read a longer memory: in it, no predicted class takes more than its share, and old
frames become sparse instead of being dropped all at once.
"""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np

from daemon.levels import in_one_depth

# Of the memory, for one class. Not the fair share: the labels of a drifted camera's frames are often wrong, and a
# memory balanced by them shows another world. Clean CIFAR-10 frames chosen so had a drift score of 0.8, not 0.4.
MAX_CLASS_SHARE = 0.25
MAX_FAIR_SHARES = 2  # a class may always have this many times its fair share: of two classes, each may have it all
OVER_SHARE_INTERVAL_S = 1.0  # between two frames of a class that has its share: it may be the only one in view
FIT_MEMORY_S = 3600.0  # older frames are dropped first: light and dirt were different then
CHECKED_REASONS = ("blank", "saturated")  # drift checks see such frames, or a covered lens would look like before

FrameFilter = Callable[[np.ndarray, float], str | None]  # (image, now) -> why the image should not be kept, or None


class StoredFrame(NamedTuple):
    """A frame in the memory for fits."""

    number: int  # among all frames that were added
    time: float  # monotonic clock, s
    label: int | None
    image: np.ndarray  # (h, w, C), in the depth of the sensor


class FitMemory:
    """At most `capacity` frames, oldest first, spread over classes and time."""

    def __init__(self, capacity: int, max_share: float = MAX_CLASS_SHARE, frames: Iterable[StoredFrame] = ()):
        """max_share: of the memory, for one class; 1 keeps the classes in the shares in which they come."""
        self.frames: list[StoredFrame] = []
        self._capacity, self._max_share = capacity, max_share
        self._counts: Counter[int | None] = Counter()  # by label
        self._newest: dict[int | None, float] = {}  # time of the newest frame, by label
        for frame in frames:
            self.add(frame)

    def wants(self, label: int | None, now: float) -> bool:
        """Return whether to add a frame. A class that has its share fills the rest slowly, so that others find room."""
        if label is None or len(self.frames) >= self._capacity:
            return True
        has_share = self._counts[label] >= self._max_share * self._capacity
        return not has_share or now - self._newest[label] >= OVER_SHARE_INTERVAL_S

    def add(self, frame: StoredFrame) -> None:
        """Add a frame; where the memory is full, drop the one that is missed least."""
        self.frames.append(frame)
        self._counts[frame.label] += 1
        self._newest[frame.label] = frame.time
        if len(self.frames) > self._capacity:
            dropped = self.frames.pop(self._least_missed(frame.time))
            self._counts[dropped.label] -= 1

    def _least_missed(self, now: float) -> int:
        """Return the index of the frame to drop.

        That is the oldest, where it is too old or no class has two frames. Else it is one from where frames are
        dense, of the largest class if that is over its share.
        """
        largest = max(self._counts, key=self._counts.__getitem__)
        if now - self.frames[0].time > FIT_MEMORY_S or self._counts[largest] == 1:
            return 0
        classes = sum(count > 0 for count in self._counts.values())
        if self._counts[largest] > max(self._max_share, MAX_FAIR_SHARES / classes) * len(self.frames):
            droppable = [i for i, frame in enumerate(self.frames) if frame.label == largest]
        else:  # not the last frame of a class
            droppable = [i for i, frame in enumerate(self.frames) if self._counts[frame.label] > 1]
        return droppable[_densest([self.frames[i].number for i in droppable])]


def _densest(numbers: list[int]) -> int:
    """Return the index of the number whose two neighbours are nearest to each other, so that thinning stays even."""
    if len(numbers) < 3:
        return 0
    spaced = np.array(numbers)
    return 1 + int((spaced[2:] - spaced[:-2]).argmin())


class Reservoir:
    """At most `capacity` frames in all: the newest `window` for drift checks, the others for fits.

    Takes 1 frame in `every`, and of those the ones that `quality_filter` has no reason against. The frame thread
    fills it, other threads read it. max_share: as for FitMemory.
    """

    def __init__(
        self,
        capacity: int,
        every: int = 1,
        *,
        window: int = 0,
        quality_filter: FrameFilter | None = None,
        max_share: float = MAX_CLASS_SHARE,
    ):
        self.window = window
        self._max_share = max_share
        self._newest: deque[np.ndarray] = deque(maxlen=window)
        self._fit_capacity = capacity - window
        self._memory = FitMemory(self._fit_capacity, max_share)
        self._every = every
        self._quality_filter = quality_filter
        self._lock = threading.Lock()
        self._offered = 0
        self.added = 0  # frames taken since the start, for checks or fits
        self.refused: Counter[str] = Counter()  # frames not taken for fits since the last reset, by reason

    def add(self, image: np.ndarray, now: float, label: int | None = None) -> str | None:
        """Offer a preprocessed frame; return why the quality filter refuses it, or None.

        image: (h, w, C), uint8, uint16 or float32; it is stored, not copied, and never changed.
        now: monotonic clock, s. label: the predicted class, if any.
        """
        self._offered += 1
        if self._offered % self._every:
            return None
        reason = self._quality_filter(image, now) if self._quality_filter else None
        if reason is not None:
            self.refused[reason] += 1
        if reason is not None and reason not in CHECKED_REASONS:
            return reason
        with self._lock:
            self.added += 1
            self._newest.append(image)
            if reason is None and self._fit_capacity and self._memory.wants(label, now):
                self._memory.add(StoredFrame(self.added, now, label, image))
        return reason

    def reset_memory(self) -> list[StoredFrame]:
        """Empty the memory for fits, as when its frames show another camera; return the frames it held."""
        self.refused = Counter()
        with self._lock:
            before, self._memory = self._memory, FitMemory(self._fit_capacity, self._max_share)
        return before.frames

    @property
    def window_full(self) -> bool:
        """Return whether there are enough frames for a drift check."""
        return 0 < self.window <= self.added

    @property
    def collected(self) -> int:
        """Number of frames in the memory for fits."""
        with self._lock:
            return len(self._memory.frames)

    @property
    def memory_bytes(self) -> int:
        """Bytes of all images in it; those that are both among the newest and in the memory for fits count once."""
        with self._lock:
            images = {id(image): image.nbytes for image in self._newest}
            images |= {id(frame.image): frame.image.nbytes for frame in self._memory.frames}
        return sum(images.values())

    def latest(self, count: int) -> list[np.ndarray]:
        """Return the newest frames, at most `count` and `window`, oldest first: (h, w, C) each, of one depth.

        They are not copied: to stack hundreds of frames keeps the frame thread waiting. They must not be changed.
        """
        with self._lock:
            images = list(self._newest)
        return in_one_depth(images[max(0, len(images) - count) :])

    def sample(self, count: int) -> list[np.ndarray]:
        """Return at most `count` frames of the memory for fits, spread over classes and time; otherwise as `latest`."""
        with self._lock:
            frames = list(self._memory.frames)
        if len(frames) > count:
            frames = FitMemory(count, self._max_share, frames).frames
        return in_one_depth([frame.image for frame in frames])
