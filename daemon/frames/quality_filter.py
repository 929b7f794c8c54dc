"""Finds frames that show nothing of a drift. They are served like all others, but no fit and few checks use them."""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

import cv2
import numpy as np

from daemon.levels import MAX_LEVEL, VALUES_PER_LEVEL

# A drifted camera's frames must pass, because fits need them: two stops too dark, in thick haze, or with half of the
# picture clipped. So all limits are wide. Levels are grey levels 0..255 of the image as it arrives, at any depth.
THUMBNAIL_SIDE = 8  # pixels; the noise of single pixels averages out in it, a scene does not
MAX_BLANK_STD = 0.5  # levels; standard deviation of the thumbnail
MIN_SATURATED_SHARE = 0.99  # of the values; a clean dark background, as in digits or X-rays, is black in over 90 %
MAX_SATURATION_VALUES = 200_000  # of an image that are looked at; all of 640 x 640 pixels would take a millisecond
FLOAT_TOLERANCE = 1 / 257  # levels, from black and white: resizing makes 254.99998 of white
MAX_DUPLICATE_DISTANCE = 1.0  # levels; mean distance between two thumbnails of one scene
MAX_DUPLICATE_CONTRAST_SHARE = 0.2  # the same, as a share of the thumbnail's std: in haze two scenes look alike
DUPLICATE_INTERVAL_S = 1.0  # then a still scene is kept again: a camera can drift while nothing moves in front of it
MAX_DRIVER_BUFFERS = 4  # a stuck driver repeats its buffers; four or fewer frames that come again are not new


class SeenFrame(NamedTuple):
    """A frame that was judged."""

    image: np.ndarray  # (h, w, C), in the depth of the sensor
    thumbnail: np.ndarray  # (THUMBNAIL_SIDE, THUMBNAIL_SIDE) float32, grey levels


class QualityFilter:
    """Judges the frames of one sensor, in their order."""

    def __init__(self) -> None:
        self._previous: deque[SeenFrame] = deque(maxlen=MAX_DRIVER_BUFFERS)
        self._kept: SeenFrame | None = None
        self._kept_at = 0.0

    def __call__(self, image: np.ndarray, now: float) -> str | None:
        """Return why this image should not be kept, or None: blank, saturated, frozen or duplicate.

        image: (h, w, C), uint8, uint16 or float32; it is stored, so it must not change afterwards.
        now: monotonic clock, s.
        """
        frame = SeenFrame(image, thumbnail(image))
        reason = self._reason(frame, now)
        self._previous.append(frame)
        if reason is None:
            self._kept, self._kept_at = frame, now
        return reason

    def _reason(self, frame: SeenFrame, now: float) -> str | None:
        if frame.thumbnail.std() < MAX_BLANK_STD:
            return "blank"
        if clipped_share(frame.image) > MIN_SATURATED_SHARE:
            return "saturated"
        # Two frames of a working camera differ in noise; a stuck driver shows its buffers in turn.
        if _equal(frame, self._kept) or any(_equal(frame, previous) for previous in self._previous):
            return "frozen"
        if now - self._kept_at < DUPLICATE_INTERVAL_S and _alike(frame, self._kept):
            return "duplicate"
        return None


def thumbnail(image: np.ndarray) -> np.ndarray:
    """Return the image (h, w, C) as (THUMBNAIL_SIDE, THUMBNAIL_SIDE) float32 grey levels."""
    small = cv2.resize(image, (THUMBNAIL_SIDE, THUMBNAIL_SIDE), interpolation=cv2.INTER_AREA)
    values = small.reshape(THUMBNAIL_SIDE, THUMBNAIL_SIDE, -1).mean(axis=2, dtype=np.float32)
    return values / np.float32(VALUES_PER_LEVEL[image.dtype])


def clipped_share(image: np.ndarray) -> float:
    """Return the share of the values that are black or white; of a large image, in evenly spaced rows."""
    rows = image[:: 1 + image.size // MAX_SATURATION_VALUES]
    if rows.dtype.kind == "f":
        clipped = (rows < FLOAT_TOLERANCE) | (rows > MAX_LEVEL - FLOAT_TOLERANCE)
    else:
        clipped = rows + rows.dtype.type(1) <= 1  # the highest value and 1 make 0
    return np.count_nonzero(clipped) / rows.size


def _equal(frame: SeenFrame, other: SeenFrame | None) -> bool:
    return (
        other is not None
        and np.array_equal(frame.thumbnail, other.thumbnail)  # first: it is faster
        and np.array_equal(frame.image, other.image)
    )


def _alike(frame: SeenFrame, other: SeenFrame | None) -> bool:
    """Return whether two frames show the same scene, apart from noise."""
    if other is None:
        return False
    distance = np.abs(frame.thumbnail - other.thumbnail).mean()
    return bool(distance < min(MAX_DUPLICATE_DISTANCE, MAX_DUPLICATE_CONTRAST_SHARE * frame.thumbnail.std()))
