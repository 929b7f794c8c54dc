"""Grey levels: how the values of an image of 8 bits, 16 bits or floats relate to the levels 0..255.

All images inside the daemon fill their range: uint8 0..255, uint16 0..65535, float32 0..255.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from calibrate.errors import RecaldError

# Of one grey level, from the coarsest depth to the finest: where two depths meet, both become the finer one.
VALUES_PER_LEVEL = {np.dtype(np.uint8): 1, np.dtype(np.uint16): 257, np.dtype(np.float32): 1}
MAX_LEVEL = 255
WORD_BITS = 16
DETECTOR_BITS = (10, 12, 14)  # of detectors whose values come in words of 16


class PixelError(RecaldError):
    """A payload that is not the image it should be; `reason` is decode, size, bits or nonfinite."""

    def __init__(self, reason: str, message: str):
        super().__init__(message)
        self.reason = reason


class PixelValues(NamedTuple):
    """What the values of a camera's images mean.

    bits: significant bits of a 16-bit word; the highest value, 2^bits - 1, is white. inverted: 0 is white instead.
    """

    bits: int = WORD_BITS
    inverted: bool = False

    def to_full_range(self, image: np.ndarray) -> np.ndarray:
        """Return the image with 0 as black and the highest value of its type as white. Raises PixelError (bits)."""
        spread = _spread(image, self.bits)
        return _invert(spread) if self.inverted else spread


WHOLE_WORDS = PixelValues()  # every bit counts, and 0 is black


def _spread(image: np.ndarray, bits: int) -> np.ndarray:
    """Spread values of so many bits over the 16 bits of their words; other images stay as they are."""
    if image.dtype != np.uint16 or bits == WORD_BITS:
        return image
    import cv2  # late: cameras that send raw pixels through daemon.client need no OpenCV

    white, highest = 2**bits - 1, int(image.max())
    if highest > white:
        raise PixelError("bits", f"the value {highest} has more than {bits} bits, which end at {white}")
    spread: np.ndarray = cv2.addWeighted(image, 65535 / white, image, 0.0, 0.0, dtype=cv2.CV_16U)
    return spread


def _invert(image: np.ndarray) -> np.ndarray:
    return MAX_LEVEL - image if image.dtype.kind == "f" else np.invert(image)


def to_levels(values: np.ndarray) -> np.ndarray:
    """Convert the values of an image to grey levels 0..255, float32."""
    return values.astype(np.float32) / np.float32(VALUES_PER_LEVEL[values.dtype])


def to_depth(image: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Return the image with its values converted to another type; where that is coarser, rounded."""
    if image.dtype == dtype:
        return image
    values = to_levels(image) * np.float32(VALUES_PER_LEVEL[dtype])
    return values if dtype.kind == "f" else np.rint(values).astype(dtype)


def enough_bits(images: Sequence[np.ndarray], inverted: bool = False) -> int | None:
    """Return the usual number of bits that holds all values of 16-bit images; None where only 16 do, or for others.

    inverted: the images were turned round after the camera sent them.
    """
    if any(image.dtype != np.uint16 for image in images):
        return None
    highest = max((int(np.invert(image.min()) if inverted else image.max()) for image in images), default=0)
    return next((bits for bits in DETECTOR_BITS if highest < 2**bits), None)


def stack_images(images: Sequence[np.ndarray]) -> np.ndarray:
    """Stack images of one shape (h, w, C) to (N, h, w, C), of the finest depth among them; N may be 0."""
    return np.stack(in_one_depth(images)) if len(images) else np.empty((0, 0, 0, 0), np.uint8)


def in_one_depth(images: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Return the images, those of a coarser depth than the finest among them converted to it."""
    depths = {image.dtype for image in images}
    if len(depths) < 2:
        return list(images)
    finest = max(depths, key=list(VALUES_PER_LEVEL).index)  # the camera changed its encoding
    return [to_depth(image, finest) for image in images]
