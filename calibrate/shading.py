"""Brighten what a lens darkens towards the corners. An offset cannot: light is lost in proportion to the light."""

from __future__ import annotations

import torch
from torch import Tensor

RADIAL_POWERS = (2, 4, 6)  # of the distance from the centre, in the polynomial of a lens (as in Lensfun's model "pa")


def brighten(frames: Tensor, gain: Tensor, black: Tensor) -> Tensor:
    """Multiply the light of frames (N, C, H, W) by a gain for each pixel, (1, 1, H, W).

    black: (C,) value of no light, in the units of the frames.
    """
    return frames * gain + black.view(1, -1, 1, 1) * (1 - gain)  # a gain of 1 changes nothing, whatever is black


def squared_radius(height: int, width: int) -> Tensor:
    """Return the squared distance of each pixel from the centre, (1, 1, H, W), 1 in the corners."""
    row, column = (torch.arange(extent) - (extent - 1) / 2 for extent in (height, width))
    squares = row[:, None].square() + column.square()
    return (squares / squares.max().clamp_min(1e-9))[None, None]


def radial_basis(height: int, width: int) -> Tensor:
    """Return the powers RADIAL_POWERS of the distance from the centre, (powers, H, W), each 1 in the corners."""
    square = squared_radius(height, width)[0, 0]
    return torch.stack([square ** (power // 2) for power in RADIAL_POWERS])


def lens_gain(lost: float, height: int, width: int) -> Tensor:
    """Return the gain (1, 1, H, W) that undoes the cos^4 law of a lens whose corners lose the share `lost` of light."""
    tangent = (1 - lost) ** -0.5 - 1  # squared, of the angle of the light that falls into the corners
    return (1 + tangent * squared_radius(height, width)).square()
