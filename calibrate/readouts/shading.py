"""Vignetting: how mean and spread of the pixels fall off towards the corners, next to the healthy pictures."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from calibrate.readouts.least_squares import least_squares
from calibrate.readouts.moments import mean_picture, variance_picture
from calibrate.readouts.picture_statistics import PictureStatistics, squared_radius

MIN_FALL_OFF, MAX_FALL_OFF = -0.5, 0.97  # of the light lost in the corners; below 0 they are brighter than before
CLEARLY_LESS = 0.7  # residual of an offset before the lens, where it is taken to be there
SPREAD_WEIGHT = 2**0.5  # of an sd by that of a mean: the standard error of an sd is smaller by that much


def fall_off(fraction: Tensor | float, radius: Tensor) -> Tensor:
    """Return the share of light at squared radii, 1 in the corners: the cos^4 law of a plain lens."""
    corner = (1 - torch.as_tensor(fraction, dtype=torch.float64)) ** -0.5 - 1
    return (1 + corner * radius) ** -2


def vignetting(healthy: PictureStatistics, recent: PictureStatistics, dead: Tensor, noise: float) -> float:
    """Return the fraction of light lost in the corners. noise: sd of the temporal noise as seen. dead: pixels (h, w).

    Mean and sd of each pixel are those of the healthy pictures times the fall-off and a gain. An offset is added to the
    mean alone, so that it does not pass for a fall-off: before the lens, as of haze, or behind it, as of a black level.
    """
    alive = ~dead
    mean, mean_after = (mean_picture(s).mean(0)[alive] for s in (healthy, recent))
    variance, variance_after = (variance_picture(s).mean(0)[alive] for s in (healthy, recent))
    sd, sd_after = variance.sqrt(), (variance_after - noise**2).clamp_min(0).sqrt()
    radius = squared_radius(*dead.shape)[alive]

    seen = torch.cat([mean_after, SPREAD_WEIGHT * sd_after])
    content = torch.cat([mean, SPREAD_WEIGHT * sd])
    offset = torch.cat([torch.ones_like(mean), torch.zeros_like(sd)])

    def residuals(parameters: Tensor, before_lens: bool) -> Tensor:
        shade = fall_off(parameters[0], radius).repeat(2)
        design = torch.stack([shade * content, shade * offset if before_lens else offset], 1)
        return seen - design @ torch.linalg.lstsq(design, seen).solution

    low, high = (torch.tensor([limit], dtype=torch.float64) for limit in (MIN_FALL_OFF, MAX_FALL_OFF))
    behind, before = (partial(residuals, before_lens=place) for place in (False, True))
    found, found_before = (least_squares(one, torch.zeros_like(low), low, high) for one in (behind, before))
    clearly = before(found_before).norm() < CLEARLY_LESS * behind(found).norm()
    return float(found_before if clearly else found)
