"""A convolution of three channels, computed as one of many: on blocks of pixels.

Libraries compute convolutions fast whose channels fill a vector register, and three do not. Moving each block of
pixels into channels (the sub-pixel convolution of Shi et al. 2016) gives the same sums with a kernel of fewer and
denser taps: a kernel of 15x15 on blocks of 2x2 becomes 12 times 12 channels with 8x8 taps, of which an eighth are zero.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def convolve_in_blocks(frames: Tensor, kernel: Tensor, bias: Tensor, block: int) -> Tensor:
    """F.conv2d(frames, kernel, bias), to the accuracy of float32 sums.

    frames: (N, C, H, W); kernel: (O, C, k, k); bias: (O,); returns (N, O, H - k + 1, W - k + 1).
    """
    size = kernel.shape[-1]
    height, width = frames.shape[-2] - size + 1, frames.shape[-1] - size + 1
    below, right = (_missing(extent, size, block) for extent in (height, width))
    blocks = F.pixel_unshuffle(F.pad(frames, (0, right, 0, below)), block)
    found = F.conv2d(blocks, _block_kernel(kernel, block), bias.repeat_interleave(block * block))
    return F.pixel_shuffle(found, block)[..., :height, :width]


def _taps(size: int, block: int) -> int:
    """How many blocks the kernel of one block of outputs reaches over."""
    return -(-(size + block - 1) // block)


def _missing(extent: int, size: int, block: int) -> int:
    """How many rows or columns of input whole blocks of `extent` outputs need beyond those that there are."""
    return (-(-extent // block) + _taps(size, block) - 1) * block - (extent + size - 1)


def _block_kernel(kernel: Tensor, block: int) -> Tensor:
    """(O, C, k, k) as (O * block², C * block², taps, taps): for each pixel of a block the kernel, moved to it."""
    outputs, channels, size, _ = kernel.shape
    taps, places = _taps(size, block), range(block)
    room = taps * block - size
    moved = [F.pad(kernel, (x, room - x, y, room - y)) for y in places for x in places]
    parts = torch.stack(moved, 1).view(outputs * block**2, channels, taps, block, taps, block)
    return parts.permute(0, 1, 3, 5, 2, 4).reshape(outputs * block**2, channels * block**2, taps, taps)
