"""What the sums of PictureStatistics say about the pictures: mean, variance, spectrum, colours, quantiles."""

from __future__ import annotations

import torch
from torch import Tensor

from calibrate.readouts.picture_statistics import (
    COLOUR_SQUARE,
    HISTOGRAM_LEVELS,
    SQUARES,
    PictureStatistics,
    folded_power,
    halved,
    middle,
)


def mean_picture(statistics: PictureStatistics) -> Tensor:
    """Return the mean picture (C, h, w), grey levels."""
    return statistics.totals.double().sum(0) / statistics.frames.sum()


def block_means(statistics: PictureStatistics) -> Tensor:
    """Return the mean picture of each block: (B, C, h, w)."""
    return statistics.totals.double() / statistics.frames.view(-1, 1, 1, 1)


def variance_picture(statistics: PictureStatistics) -> Tensor:
    """Return the variance of each pixel over time: (C, h, w), squared grey levels."""
    mean = mean_picture(statistics)
    return (statistics.squares.double().sum(0) / statistics.frames.sum() - mean.square()).clamp_min(0)


def fluctuation_spectrum(statistics: PictureStatistics) -> Tensor:
    """Return the power (h // 2 + 1, w // 2 + 1) of what changes between pictures; what is in each is not in it."""
    count = statistics.frames.sum()
    mean = mean_picture(statistics)[middle(statistics.totals.shape[1])]
    constant = folded_power(mean[None])
    return ((statistics.spectrum.sum(0) / count - constant) * count / (count - 1).clamp_min(1)).clamp_min(1e-6)


def colour_moments(statistics: PictureStatistics) -> tuple[Tensor, Tensor]:
    """Return the mean (C,) of the colours and the covariance (C, C) over time of colours of squares."""
    mean = mean_picture(statistics)
    pooled = mean
    for _ in SQUARES[1 : COLOUR_SQUARE + 1]:
        pooled = halved(pooled)
    constant = pooled.flatten(1)
    total = statistics.products.sum(0) / statistics.frames.sum()
    return mean.mean((1, 2)), (total - constant @ constant.T) / constant.shape[1]


def quantiles(counts: Tensor, number: int) -> Tensor:
    """Return equally likely values (..., number) of histograms (..., HISTOGRAM_LEVELS) of whole grey levels.

    Counts are spread evenly over the width of their level, but for those of black and white, where values end.
    """
    steps = (torch.arange(number, dtype=torch.float64) + 0.5) / number
    cumulated = counts.cumsum(-1) / counts.sum(-1, keepdim=True).clamp_min(1)
    level = torch.searchsorted(cumulated, steps.expand(*counts.shape[:-1], number).contiguous())
    level = level.clamp_max(HISTOGRAM_LEVELS - 1)
    above = cumulated.gather(-1, level)
    share = (counts / counts.sum(-1, keepdim=True).clamp_min(1)).gather(-1, level).clamp_min(1e-12)
    inside = ((steps - above) / share + 0.5).clamp(-0.5, 0.5)
    return torch.where((level > 0) & (level < HISTOGRAM_LEVELS - 1), level + inside, level.double())
