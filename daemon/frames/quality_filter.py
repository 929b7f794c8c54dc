"""Which frames tell nothing of a drift: they are answered like any other, but kept for no check and no fit."""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

import cv2
import numpy as np

# A drifted camera's frames must pass, for they are what a fit needs: two stops too dark, in thick haze, or with
# half of the picture clipped. So all thresholds are far out, and in grey levels as they arrive.
SIDE = 8  # of the thumbnail: noise of single pixels averages out of it, which is what a scene does not
BLANK_LEVELS = 0.5  # standard deviation of the thumbnail
SATURATED_SHARE = 0.99  # of the values: a clean dark ground, as in digits or X-rays, is black over nine tenths
ENOUGH_VALUES = 200_000  # to tell that share; 640 x 640 pixels would take a millisecond
SAME_LEVELS = 1.0  # mean distance of two thumbnails of one scene, at most
SAME_CONTRAST = 0.2  # and as a share of the thumbnail's standard deviation: in haze two scenes look alike
BUFFERS = 4  # of a driver, at most: four or fewer frames that come round again are none of the scene
SAME_S = 1.0  # one scene is kept again after so long: a camera can drift while all it sees stands still


class Known(NamedTuple):
    image: np.ndarray
    thumbnail: np.ndarray


class QualityFilter:
    """Judges the frames of one sensor, in their order."""

    def __init__(self) -> None:
        self._before: deque[Known] = deque(maxlen=BUFFERS)
        self._kept: Known | None = None
        self._kept_at = 0.0

    def __call__(self, image: np.ndarray, now: float) -> str | None:
        """Why this image (h, w, C) uint8 is not to be kept, or None; it must not be written to afterwards."""
        frame = Known(image, thumbnail(image))
        reason = self._reason(frame, now)
        self._before.append(frame)
        if reason is None:
            self._kept, self._kept_at = frame, now
        return reason

    def _reason(self, frame: Known, now: float) -> str | None:
        if frame.thumbnail.std() < BLANK_LEVELS:
            return "blank"
        if clipped_share(frame.image) > SATURATED_SHARE:
            return "saturated"
        # Two frames of a working camera differ in noise; a driver that is stuck shows its buffers in turn.
        if _equal(frame, self._kept) or any(_equal(frame, before) for before in self._before):
            return "frozen"
        if now - self._kept_at < SAME_S and _alike(frame, self._kept):
            return "duplicate"
        return None


def thumbnail(image: np.ndarray) -> np.ndarray:
    """The image in SIDE x SIDE grey levels, float32."""
    small = cv2.resize(image, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    return small.reshape(SIDE, SIDE, -1).mean(axis=2, dtype=np.float32)


def clipped_share(image: np.ndarray) -> float:
    """The share of values that are 0 or 255, in evenly spaced rows of a large image."""
    rows = image[:: 1 + image.size // ENOUGH_VALUES]
    return np.count_nonzero(rows + np.uint8(1) <= 1) / rows.size  # 255 + 1 is 0 in uint8


def _equal(frame: Known, other: Known | None) -> bool:
    return (
        other is not None
        and np.array_equal(frame.thumbnail, other.thumbnail)  # the quick look first
        and np.array_equal(frame.image, other.image)
    )


def _alike(frame: Known, other: Known | None) -> bool:
    if other is None:
        return False
    distance = np.abs(frame.thumbnail - other.thumbnail).mean()
    return bool(distance < min(SAME_LEVELS, SAME_CONTRAST * frame.thumbnail.std()))
