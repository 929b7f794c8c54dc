"""How many different frames a window shows: the frames of a video, or of a camera that stands still, are much alike."""

from __future__ import annotations

import torch
from torch import Tensor

# Of the variance between healthy frames, in the median channel. On five networks clean windows of any scene have 0.22
# or more, drifted ones 0.06 or more but for X-rays in the dark (0.006). On a still scene noise of 3 grey levels leaves
# 0.019 at most, light that flickers by 3 % 0.014.
MIN_VARIANCE_SHARE = 0.03
# Root mean square over channels of how far a healthy frame lies from their mean, in standard deviations: 99 % of frames
# of five networks below 1.9, all below 2.8. X-rays in the dark, which vary as little as a still scene, lie at 3.1.
MAX_FRAME_DEVIATION = 2.8


def different_frames(first: Tensor, centre: Tensor, variance: Tensor) -> Tensor:
    """Estimate how many independent frames say as much as the n frames (..., n, C) of each window, (...), 1 to n.

    first: in the order of time. centre, variance: (C,) of healthy frames. From the ratio of the differences between
    neighbours to the variance in the window (von Neumann 1941), read as that of a first-order autoregression (Bayley &
    Hammersley 1946, "The effective number of independent observations"). No drift that acts on all frames alike changes
    this ratio. A window with hardly any variance counts as one frame, if that might be a healthy one: what then differs
    is noise.
    """
    count = first.shape[-2]
    inside = first.var(-2) / variance
    steps = first.diff(dim=-2).square().mean(-2) / (2 * variance)
    ratio = (steps.mean(-1) / inside.mean(-1).clamp_min(torch.finfo(first.dtype).tiny)).clamp(0, 1)
    frames = (count * ratio / (2 - ratio)).clamp(1, count)
    deviation = ((first.mean(-2) - centre).square() / variance).mean(-1).sqrt()
    still = (inside.median(-1).values < MIN_VARIANCE_SHARE) & (deviation <= MAX_FRAME_DEVIATION)
    return torch.where(still, torch.ones_like(frames), frames)
