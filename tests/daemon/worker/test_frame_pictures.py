"""Frames of any depth and number of channels become pictures that a browser shows, bounded in size."""

from __future__ import annotations

import base64

import cv2
import numpy as np
import pytest
import torch

from daemon.worker.frame_pictures import MAX_SHOWN_SIDE_PX, encode_pair
from deploy.model.card import Normalisation

COLOUR = Normalisation(mean=[0.5, 0.4, 0.3], std=[0.2, 0.25, 0.3])
GREY = Normalisation(mean=[0.5], std=[0.25])


def picture(encoded: str) -> np.ndarray:
    """Decode to (h, w, C), RGB or grey."""
    found = cv2.imdecode(np.frombuffer(base64.b64decode(encoded), np.uint8), cv2.IMREAD_UNCHANGED)
    return found[:, :, None] if found.ndim == 2 else found[:, :, ::-1]


def normalised(image: np.ndarray, white: float, normalisation: Normalisation) -> torch.Tensor:
    mean, std = torch.tensor(normalisation.mean), torch.tensor(normalisation.std)
    return ((torch.from_numpy(image.astype(np.float32) / white) - mean) / std).permute(2, 0, 1)[None]


@pytest.mark.parametrize(
    ("dtype", "white", "normalisation"),
    [(np.uint8, 255, COLOUR), (np.uint16, 65535, COLOUR), (np.float32, 255, COLOUR), (np.uint8, 255, GREY)],
    ids=["8 bits", "16 bits", "floats", "grey"],
)
def test_the_identity_shows_the_frame_twice(dtype, white, normalisation):
    channels = len(normalisation.mean)
    image = (np.random.default_rng(0).random((6, 8, channels)) * white).astype(dtype)
    frame = normalised(image, white, normalisation)
    received, restored = encode_pair(image, frame, torch.nn.Identity(), normalisation)
    expected = image.astype(float) * 255 / white
    for encoded in (received, restored):
        assert picture(encoded).shape == (6, 8, channels) and np.abs(picture(encoded) - expected).max() <= 1


def test_what_lies_beyond_black_and_white_is_clipped():
    image = np.full((2, 2, 3), 128, np.uint8)
    for value, level in ((1e6, 255), (-1e6, 0), (float("nan"), 0)):
        _, restored = encode_pair(image, torch.zeros(1, 3, 2, 2), lambda frame, v=value: frame + v, COLOUR)
        assert set(picture(restored).ravel()) == {level}


@pytest.mark.parametrize("channels", [1, 3])
def test_a_large_frame_is_made_smaller(channels):
    image = np.zeros((1200, 2400, channels), np.uint8)
    received, _ = encode_pair(image, torch.zeros(1, channels, 1200, 2400), None, COLOUR if channels == 3 else GREY)
    assert picture(received).shape == (MAX_SHOWN_SIDE_PX // 2, MAX_SHOWN_SIDE_PX, channels)
