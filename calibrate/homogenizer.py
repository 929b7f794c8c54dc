"""The homogenizer: a small camera-like transform in front of a frozen network, the identity when new.

Tone curve, then fixed-pattern offset map, then a colour and deblurring kernel: the parts a camera has, in the
order in which they undo it, instead of a general image-to-image network (Willis & Oala 2021 used a residual
CNN with BatchNorm). It is a plain chain of relu, multiply, add and one convolution, which every compiler has.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

KNOTS = (-1.2, -0.4, 0.4, 1.2)  # where the tone curve may bend, in the network's normalised units

# Side of the blocks of pixels that the kernel is applied in. On one core, with three channels and 15 taps, ONNX Runtime
# takes 4.0 ms for a frame of 224x224 (9.6 without blocks, 4.4 with 4x4), PyTorch forward and backward 24 ms for 128
# frames of 32x32 (95 without, 24 with 4x4).
BLOCK = 2
KERNEL_SIZE = 15  # 9 taps lose 1 to 4 points of accuracy on CIFAR-10 when undoing blur and cross-talk, 5 lose 10


class Homogenizer(nn.Module):
    """ρ: frames (N, C, H, W) in the network's normalised input space to frames of the same shape.

    curve: (C, len(KNOTS)) each knot in turn stretches what lies above it by 1 + curve
    offset: (1, C, H, W) added to every frame; undoes a fixed pattern
    kernel: (C, C, k, k) mixes colours and sharpens, reflect padding; bias: (C,)
    """

    def __init__(self, channels: int, height: int, width: int, kernel_size: int | None = None):
        super().__init__()
        kernel_size = largest_kernel(height, width) if kernel_size is None else kernel_size
        if kernel_size % 2 == 0 or not 1 <= kernel_size <= min(height, width):
            raise ValueError(f"kernel_size {kernel_size} must be odd and fit into {height}x{width} frames")
        self._architecture = {"channels": channels, "height": height, "width": width, "kernel_size": kernel_size}
        self.curve = nn.Parameter(torch.zeros(channels, len(KNOTS)))
        self.offset = nn.Parameter(torch.zeros(1, channels, height, width))
        self.kernel = nn.Parameter(identity_kernel(channels, kernel_size))
        self.bias = nn.Parameter(torch.zeros(channels))

    def architecture(self) -> dict[str, int]:
        """The constructor's arguments, for an artefact's manifest."""
        return dict(self._architecture)

    def forward(self, frames: Tensor) -> Tensor:
        return self.mix(self.tone(frames) + self.offset)

    def tone(self, frames: Tensor) -> Tensor:
        """A piecewise linear curve for each channel."""
        return bend(frames, self.curve)

    def mix(self, frames: Tensor) -> Tensor:
        """The colour and deblurring kernel."""
        margin = self.kernel.shape[-1] // 2
        padded = F.pad(frames, (margin,) * 4, mode="reflect")
        return convolve_in_blocks(padded, self.kernel, self.bias, BLOCK)


def bend(frames: Tensor, curve: Tensor) -> Tensor:
    """The tone curve (C, len(KNOTS)) of frames (N, C, H, W)."""
    for knot, stretch in zip(KNOTS, curve.unbind(1), strict=True):
        frames = frames + stretch.view(1, -1, 1, 1) * torch.relu(frames - knot)
    return frames


def largest_kernel(height: int, width: int) -> int:
    """KERNEL_SIZE, or the largest odd size that fits into small frames."""
    shorter = min(height, width)
    return min(KERNEL_SIZE, shorter - 1 + shorter % 2)


def identity_kernel(channels: int, kernel_size: int) -> Tensor:
    """(C, C, k, k), one at the centre tap of each channel's own kernel."""
    kernel = torch.zeros(channels, channels, kernel_size, kernel_size)
    kernel[range(channels), range(channels), kernel_size // 2, kernel_size // 2] = 1.0
    return kernel


def convolve_in_blocks(frames: Tensor, kernel: Tensor, bias: Tensor, block: int) -> Tensor:
    """F.conv2d(frames, kernel, bias), to the accuracy of float32 sums, computed on blocks of pixels.

    Libraries compute convolutions fast whose channels fill a vector register, and three do not. Moving each block of
    pixels into channels (sub-pixel convolution, Shi et al. 2016, "Real-time single image and video super-resolution")
    gives the same sums with a kernel of fewer and denser taps: 15x15 taps on blocks of 2x2 become 12 times 12 channels
    with 8x8 taps, of which an eighth are zero.

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
