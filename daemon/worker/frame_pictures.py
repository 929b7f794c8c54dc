"""Encode a frame as received and as restored, for people who look at the page."""

from __future__ import annotations

import base64

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from daemon.levels import MAX_LEVEL, to_depth
from deploy.model.card import Normalisation

MAX_SHOWN_SIDE_PX = 480  # of a picture; a larger one is no clearer on a tablet, and takes longer to encode


def encode_pair(
    image: np.ndarray, frame: Tensor, homogenizer: nn.Module | None, normalisation: Normalisation
) -> tuple[str, str | None]:
    """Return PNG files in base64: the image as received, and as ρ restores it (None without ρ).

    image: (h, w, C), any depth. frame: (1, C, h, w), the same in the model's normalised input space.
    """
    received = _encode(to_depth(image, np.dtype(np.uint8)))
    if homogenizer is None:
        return received, None
    mean, std = (torch.tensor(values)[:, None, None] for values in (normalisation.mean, normalisation.std))
    with torch.no_grad():
        levels = (homogenizer(frame)[0] * std + mean) * MAX_LEVEL  # (C, h, w)
    restored = levels.nan_to_num(0.0).round().clamp(0, MAX_LEVEL).to(torch.uint8).permute(1, 2, 0).numpy()
    return received, _encode(restored)


def _encode(image: np.ndarray) -> str:
    scale = MAX_SHOWN_SIDE_PX / max(image.shape[:2])
    if scale < 1:
        size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA).reshape(size[1], size[0], -1)
    done, data = cv2.imencode(".png", np.ascontiguousarray(image[:, :, ::-1]))  # OpenCV takes blue first
    assert done
    return base64.b64encode(data.tobytes()).decode()
