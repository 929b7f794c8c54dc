"""Cross-talk between the colours, from their covariance: it takes a share of all colour, and leaves grey as it is."""

from __future__ import annotations

import torch
from torch import Tensor

from calibrate.readouts.least_squares import least_squares
from calibrate.readouts.moments import colour_moments
from calibrate.readouts.picture_statistics import PictureStatistics

MIN_CROSS_TALK, MAX_CROSS_TALK = -0.3, 0.65
GREEN_CHANNEL = 1


def mixing(fraction: float | Tensor) -> Tensor:
    """Return the matrix (3, 3) that moves a fraction of each colour to the two others, in equal parts."""
    return (1 - 1.5 * fraction) * torch.eye(3, dtype=torch.float64) + 0.5 * fraction


def cross_talk(healthy: PictureStatistics, recent: PictureStatistics) -> float:
    """Return the fraction that fits the covariances, together with a gain for each colour."""
    before, after = colour_moments(healthy)[1], colour_moments(recent)[1]
    scale = after.diagonal().clamp_min(1e-3).sqrt()

    def residuals(parameters: Tensor) -> Tensor:
        mixed = torch.diag(parameters[1:].exp()) @ mixing(parameters[0])
        difference = (mixed @ before @ mixed.T - after) / torch.outer(scale, scale)
        return difference[tuple(torch.triu_indices(3, 3))]

    low = torch.tensor([MIN_CROSS_TALK, -3, -3, -3], dtype=torch.float64)
    high = torch.tensor([MAX_CROSS_TALK, 2, 2, 2], dtype=torch.float64)
    return float(least_squares(residuals, torch.zeros(4, dtype=torch.float64), low, high)[0])
