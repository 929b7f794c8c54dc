"""Fixed pattern, row and column banding: what the mean pictures of several blocks of time have in common."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from calibrate.readouts.moments import block_means
from calibrate.readouts.picture_statistics import PictureStatistics

DEGREE = 4  # of the polynomial along rows or columns that the scene and the lens may change
KEPT_OF_PIXEL = 8 / 9  # of white noise behind the difference to the mean of 3x3 pixels


RIDGE_LEVELS = 1.0  # of the healthy mean: finer structure is no scale to measure the recent one by


class PatternSds(NamedTuple):
    """Sds in grey levels, as black and white left them."""

    pixels: float
    rows: float
    columns: float


def pattern(healthy: PictureStatistics, recent: PictureStatistics, dead: Tensor) -> PatternSds:
    """Return the sds of offsets that are the same in each recent picture. dead: pixels (h, w) to leave out."""
    before, after = block_means(healthy), block_means(recent)
    fine = _common_square(_fine(before, dead), _fine(after, dead))
    pixels = max(fine, 0.0) / KEPT_OF_PIXEL
    rows, columns = (_banding(before, after, dead, axis, pixels) for axis in (3, 2))
    return PatternSds(pixels**0.5, rows**0.5, columns**0.5)


def unseen_share_error(lines: int) -> float:
    """Return the relative standard error of a banding's sd, of so many lines: what polynomials took of it is unknown.

    The square of normal values in p of n directions has the standard deviation sqrt(2 p) / n of their whole square.
    """
    return (2 * (DEGREE + 2)) ** 0.5 / (2 * lines)


def _common_square(before: Tensor, after: Tensor) -> float:
    """Return the mean square of what blocks (B, n) have beyond a multiple of the healthy ones.

    Only products of two different blocks count, of the healthy ones too: what differs between the contents of blocks
    is independent in them, and adds nothing on average.
    """
    scale = _slope(before.mean(0), after.mean(0))
    own, other = _mean_product(after), _mean_product(scale * before)
    cross = (after.mean(0) * scale * before.mean(0)).mean()
    return float(own + other - 2 * cross)


def _slope(x: Tensor, y: Tensor) -> Tensor:
    return (x @ y).clamp_min(0) / (x.square().sum() + len(x) * RIDGE_LEVELS**2)


def _mean_product(blocks: Tensor) -> Tensor:
    """Return the mean over pairs of different blocks (B, n) of their mean product; of one block its mean square."""
    count = len(blocks)
    if count == 1:
        return blocks.square().mean()
    return (blocks.sum(0).square() - blocks.square().sum(0)).mean() / (count * (count - 1))


def _fine(means: Tensor, dead: Tensor) -> Tensor:
    """Return the difference of each pixel to the mean of 3x3 around it, without rows and columns: (B, n)."""
    alive = (~dead).double().expand(means.shape[0], means.shape[1], -1, -1)
    local = F.avg_pool2d(means * alive, 3, stride=1) / F.avg_pool2d(alive, 3, stride=1).clamp_min(1 / 9)
    fine = (means[..., 1:-1, 1:-1] - local) * alive[..., 1:-1, 1:-1]
    fine = fine - fine.mean(2, keepdim=True)
    fine = fine - fine.mean(3, keepdim=True)
    return fine.flatten(1) * (alive[0].numel() / alive[0].sum()).sqrt()


def _banding(before: Tensor, after: Tensor, dead: Tensor, axis: int, pixels: float) -> float:
    """Return the variance of offsets that a row (axis 3) or column (axis 2) shares, in all colours."""
    channels = before.shape[1]
    lines = [_lines(means, dead, axis) for means in (before, after)]
    length = lines[0].shape[1]
    basis = _polynomials(length)
    before, after = (line - (line @ basis) @ basis.T for line in lines)
    of_pixels = pixels * length / float((~dead).sum() * channels)  # what they leave in the mean of a line
    return max(_common_square(before, after) * length / (length - DEGREE - 2) - of_pixels, 0.0)


def _lines(means: Tensor, dead: Tensor, axis: int) -> Tensor:
    """Return the mean (B, lines) of the live pixels of each line, over the colours."""
    alive = (~dead).double()
    return (means.mean(1) * alive).sum(axis - 1) / alive.sum(axis - 2).clamp_min(1)


def _polynomials(length: int) -> Tensor:
    """Return orthonormal polynomials (length, DEGREE + 1)."""
    place = torch.linspace(-1, 1, length, dtype=torch.float64)
    return torch.linalg.qr(place[:, None] ** torch.arange(DEGREE + 1)).Q
