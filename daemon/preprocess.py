"""From camera images to the frozen model's normalised input, as its card says."""

from __future__ import annotations

import cv2
import numpy as np

from deploy.card import ModelCard


class Preprocessor:
    """Makes images of the card's size and order, and normalises stacks of them."""

    def __init__(self, card: ModelCard):
        self._height, self._width = card.input.height, card.input.width
        self._channels = card.input.channels
        mean = np.asarray(card.normalisation.mean).reshape(-1, 1, 1)
        std = np.asarray(card.normalisation.std).reshape(-1, 1, 1)
        # (v / 255 - mean) / std as one multiplication and one addition, worked out in double precision
        self._scale = (1 / (255 * std)).astype(np.float32)  # (C, 1, 1)
        self._offset = (-mean / std).astype(np.float32)

    def to_input_image(self, image: np.ndarray) -> np.ndarray:
        """Turn (H, W, 3) RGB or (H, W) grey, uint8 or float in 0..255, into an (h, w, C) uint8 of its own."""
        image = self._resize(image)
        if image.dtype != np.uint8:
            image = np.clip(np.rint(image), 0, 255).astype(np.uint8)  # resizing may overshoot
        if image.ndim == 2 and self._channels == 3:
            image = cv2.cvtColor(image, cv2.COLOR_GRAY2RGB)
        elif image.ndim == 3 and self._channels == 1:
            image = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
        return image.reshape(self._height, self._width, self._channels)

    def _resize(self, image: np.ndarray) -> np.ndarray:
        height, width = image.shape[:2]
        if (height, width) == (self._height, self._width):
            return image.copy()  # the image may be a view of a message, which must not stay alive for it
        shrinks = height > self._height or width > self._width
        method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
        return cv2.resize(image, (self._width, self._height), interpolation=method)

    def normalise(self, images: np.ndarray) -> np.ndarray:
        """Turn (N, h, w, C) uint8 into (N, C, h, w) float32, contiguous."""
        planes = images.transpose(0, 3, 1, 2)
        normalised = np.empty(planes.shape, np.float32)
        np.multiply(planes, self._scale, out=normalised)
        normalised += self._offset
        return normalised
