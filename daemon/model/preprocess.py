"""Convert camera images into the frozen model's normalised input, as the model card says."""

from __future__ import annotations

import cv2
import numpy as np

from daemon.levels import MAX_LEVEL, VALUES_PER_LEVEL
from deploy.model.card import ModelCard

COLOUR_CONVERSIONS = {  # by dimensions of the image, whether blue is first, and channels of the model
    (2, False, 3): cv2.COLOR_GRAY2RGB,
    (3, False, 1): cv2.COLOR_RGB2GRAY,
    (3, True, 1): cv2.COLOR_BGR2GRAY,
    (3, True, 3): cv2.COLOR_BGR2RGB,
}


class Preprocessor:
    """Converts images to the size and channels of the card, and normalises stacks of them."""

    def __init__(self, card: ModelCard):
        self._height, self._width = card.input.height, card.input.width
        self._channels = card.input.channels
        mean = np.asarray(card.normalisation.mean).reshape(-1, 1, 1)
        std = np.asarray(card.normalisation.std).reshape(-1, 1, 1)
        # (v / white - mean) / std as one multiplication and one addition, computed in double precision
        self._scales = {  # (C, 1, 1) each
            dtype: (1 / (MAX_LEVEL * per_level * std)).astype(np.float32)
            for dtype, per_level in VALUES_PER_LEVEL.items()
        }
        self._offset = (-mean / std).astype(np.float32)

    def to_input_image(self, image: np.ndarray) -> np.ndarray:
        """Convert (H, W, 3) RGB or (H, W) grey, uint8, uint16 or float32 in 0..255, into a new array (h, w, C).

        The values keep their type: a detector of 12 bits loses none of them on the way to ρ. The image is resized
        first: channels are then converted on fewer pixels.
        """
        blue_first = image.ndim == 3 and image.strides[2] < 0  # OpenCV would copy such a view
        pixels = self._resize(image[:, :, ::-1] if blue_first else image)
        conversion = COLOUR_CONVERSIONS.get((pixels.ndim, blue_first, self._channels))
        if conversion is not None:
            pixels = cv2.cvtColor(pixels, conversion)
        elif np.may_share_memory(pixels, image):
            pixels = pixels.copy()  # a view would keep the whole message in memory
        if pixels.dtype.kind == "f":
            np.clip(pixels, 0, MAX_LEVEL, out=pixels)  # resizing floats may overshoot by their last digits
        return pixels.reshape(self._height, self._width, self._channels)

    def _resize(self, image: np.ndarray) -> np.ndarray:
        height, width = image.shape[:2]
        if (height, width) == (self._height, self._width):
            return image
        shrinks = height > self._height or width > self._width
        method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
        return cv2.resize(image, (self._width, self._height), interpolation=method)

    def normalise(self, images: np.ndarray) -> np.ndarray:
        """Return images (N, h, w, C) as the model's normalised input (N, C, h, w) float32, contiguous.

        They fill the range of their type: uint8, uint16, or float32 in 0..255.
        """
        planes = images.transpose(0, 3, 1, 2)
        normalised = np.empty(planes.shape, np.float32)
        np.multiply(planes, self._scales[images.dtype], out=normalised)
        normalised += self._offset
        return normalised
