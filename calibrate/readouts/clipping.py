"""What black and white take from noise and patterns: values end there, so that a part of the spread is lost."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from calibrate.readouts.picture_statistics import HISTOGRAM_LEVELS

NODES = 17  # equally likely values that stand for a normal distribution
WHITE = HISTOGRAM_LEVELS - 1
SDS = torch.cat([torch.zeros(1), torch.logspace(-1, 2.2, 40)]).double()  # to compare with, up to 160 grey levels


def normal_nodes(number: int) -> Tensor:
    """Return equally likely values (number,) of mean 0 and variance 1, as the quantiles of a normal distribution."""
    nodes = torch.special.ndtri((torch.arange(number, dtype=torch.float64) + 0.5) / number)
    return nodes / nodes.square().mean().sqrt()


def pattern_sd(seen: float, counts: Tensor) -> float:
    """Return the sd of offsets, the same in each frame, whose clipped form has the sd `seen` in mean pictures.

    counts: (HISTOGRAM_LEVELS,), of the levels of pictures without it.
    """
    share = counts / counts.sum()
    means = (_clipped() * share[:, None]).sum(1)  # (SDS, NODES): of all levels, for each offset
    return _interpolated(seen, means.var(1, correction=0).sqrt())


def noise_sd(seen: float, counts: Tensor) -> float:
    """Return the sd of noise that differs in each frame, whose clipped form has the sd `seen`."""
    share = counts / counts.sum()
    return _interpolated(seen, (_variances() * share).sum(1).sqrt())


@cache
def _variances() -> Tensor:
    """Return the variance (SDS, HISTOGRAM_LEVELS) of each level with noise of each sd."""
    return _clipped().var(2, correction=0)


@cache
def _clipped() -> Tensor:
    """Return the values (SDS, HISTOGRAM_LEVELS, NODES) of each level with noise of each sd."""
    levels = torch.arange(HISTOGRAM_LEVELS, dtype=torch.float64)
    return (levels[:, None] + SDS[:, None, None] * normal_nodes(NODES)).clamp(0, WHITE)


def _interpolated(seen: float, curve: Tensor) -> float:
    """Return where a curve (SDS,) that rises from 0 reaches a value; its last point where it does not."""
    above = int(torch.searchsorted(curve, torch.tensor(seen, dtype=curve.dtype)))
    if above == 0 or above == len(curve):
        return float(SDS[0 if above == 0 else -1])
    low, high = float(curve[above - 1]), float(curve[above])
    return float(torch.lerp(SDS[above - 1], SDS[above], (seen - low) / (high - low)))
