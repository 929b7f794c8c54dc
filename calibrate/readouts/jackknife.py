"""Standard errors from blocks of time: how much an estimate changes when a block is left out."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from calibrate.readouts.picture_statistics import PictureStatistics


def standard_errors(
    estimate: Callable[[PictureStatistics, PictureStatistics], Tensor],
    healthy: PictureStatistics,
    recent: PictureStatistics,
) -> Tensor:
    """Return the standard errors of an estimate, any shape, of both kinds of pictures, of two blocks or more each.

    The content of a short period is not that of a long one. So the recent period is taken to vary at least as much as
    blocks of the healthy period do among each other. Sources: Tukey 1958; Künsch 1989 (blocks of dependent data).
    """
    before = _variance([estimate(healthy.without(block), recent) for block in range(len(healthy.frames))])
    after = _variance([estimate(healthy, recent.without(block)) for block in range(len(recent.frames))])
    block_frames = healthy.frames.mean()
    of_a_block = before * len(healthy.frames) * (block_frames / recent.frames.sum()).clamp_min(1.0)
    return (before + torch.maximum(after, of_a_block)).sqrt()


def block_errors(
    estimate: Callable[[PictureStatistics, PictureStatistics], Tensor],
    healthy: PictureStatistics,
    recent: PictureStatistics,
) -> Tensor:
    """Return what is read, on average, from a block of the healthy period as if it were a recent one.

    An estimate that is 0 without a drift. A recent period may be as unlike the healthy one as one of its blocks is:
    of few kinds of things, under another light. Shorter ones may be less alike still.
    """
    numbers = range(len(healthy.frames))
    found = torch.stack([estimate(healthy.without(number), healthy.only(number)) for number in numbers])
    return (found.square().mean(0) * (healthy.frames.mean() / recent.frames.sum()).clamp_min(1.0)).sqrt()


def _variance(values: list[Tensor]) -> Tensor:
    """Return the variance of an estimate from its values with one block left out each."""
    return torch.stack(values).var(0, correction=0) * (len(values) - 1)
