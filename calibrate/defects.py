"""Replace pixels that stand out of their neighbours: dead and hot pixels, and impulse noise. No linear map can."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

NO_STEP = 1e6  # normalised input units: no pixel stands out so far
FRAMES_AT_ONCE = 16


def replace_defects(frames: Tensor, step: Tensor) -> Tensor:
    """Give each value of frames (N, C, H, W) that is more than `step` from the median of its 3x3 pixels that median.

    step: (C,) in the units of the frames. Values that are nearer stay exactly as they are. Borders are reflected.
    """
    median = median_of_neighbours(frames)
    return torch.where((frames - median).abs() > step.view(1, -1, 1, 1), median, frames)


def replace_defects_of_many(frames: Tensor, step: Tensor) -> Tensor:
    """Do the same to many frames, a few at a time: for a moment each takes ten times its memory."""
    return torch.cat([replace_defects(few, step) for few in frames.split(FRAMES_AT_ONCE)])


def median_of_neighbours(frames: Tensor) -> Tensor:
    """Return the median of the 3x3 pixels around each pixel of frames (N, C, H, W), with reflected borders.

    The columns of three are sorted first, once for the three medians that each is part of. The median of nine is then
    that of the highest low, the middle middle and the lowest high value (Devillard 1998, "Fast median search"). All
    steps are minima and maxima, which every compiler supports.
    """
    padded = F.pad(frames, (1, 1, 1, 1), mode="reflect")
    low, middle, high = _sorted(*_neighbours(padded, dimension=2))
    left, centre, right = _neighbours(low, dimension=3)
    highest_low = left.maximum(centre).maximum(right)
    middle_middle = _median(*_neighbours(middle, dimension=3))
    left, centre, right = _neighbours(high, dimension=3)
    lowest_high = left.minimum(centre).minimum(right)
    return _median(highest_low, middle_middle, lowest_high)


def _neighbours(padded: Tensor, dimension: int) -> tuple[Tensor, Tensor, Tensor]:
    extent = padded.shape[dimension] - 2
    before, here, after = (padded.narrow(dimension, start, extent) for start in range(3))
    return before, here, after


def _sorted(a: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    a, b = a.minimum(b), a.maximum(b)
    b, c = b.minimum(c), b.maximum(c)
    return a.minimum(b), a.maximum(b), c


def _median(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    return a.minimum(b).maximum(a.maximum(b).minimum(c))
