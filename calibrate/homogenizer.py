"""The homogenizer ρ: a small camera-like transform in front of a frozen network. A new one is the identity.

ρ has three parts, in this order: a tone curve, a fixed-pattern offset map, and a colour and deblurring kernel. Two
more come before them where a camera needs them: defective pixels are replaced, and the shading of a lens is undone.
Each part undoes one effect of a camera. Willis & Oala (2021) use a general residual CNN with BatchNorm instead. ρ
consists of relu, minimum, maximum, comparison, multiply, add and one convolution, and every compiler supports these.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from calibrate.defects import NO_STEP, replace_defects
from calibrate.shading import brighten

TONE_KNOTS = (-1.2, -0.4, 0.4, 1.2)  # where the slope of the tone curve may change, in normalised input units

# Side of the pixel blocks that the kernel is computed on. On one core, with 3 channels and 15 taps, ONNX Runtime takes
# 4.0 ms for a frame of 224x224 (9.6 ms without blocks, 4.4 ms with 4x4). PyTorch takes 24 ms forward and backward for
# 128 frames of 32x32 (95 ms without blocks, 24 ms with 4x4).
KERNEL_BLOCK_PIXELS = 2

# Side of the kernel in pixels. With 9 taps, undoing blur and cross-talk on CIFAR-10 loses 1 to 4 points of accuracy,
# with 5 taps it loses 10.
MAX_KERNEL_SIZE = 15


class Homogenizer(nn.Module):
    """Map frames (N, C, H, W) in the network's normalised input space to frames of the same shape.

    curve: (C, len(TONE_KNOTS)). Each knot multiplies the slope of the tone curve above it by 1 + curve.
    offset: (1, C, H, W), added to every frame. It cancels a fixed pattern.
    kernel: (C, C, k, k), mixes colours and sharpens, with reflected borders.
    bias: (C,), added after the kernel.
    defect_step: (C,), only with `defects`. Values further than that from the median around them are replaced by it.
    gain: (1, 1, H, W), and black: (C,), only with `shading`. The light above black is multiplied by the gain.
    kernel_size: k in pixels, odd and at most H and W. Default: `largest_kernel(height, width)`.
    Raises ValueError for another kernel_size, and for `defects` in frames that are one pixel wide or high.
    """

    defect_step: nn.Parameter | None
    gain: nn.Parameter | None
    black: nn.Parameter | None

    def __init__(
        self,
        channels: int,
        height: int,
        width: int,
        kernel_size: int | None = None,
        *,
        defects: bool = False,
        shading: bool = False,
    ):
        super().__init__()
        kernel_size = largest_kernel(height, width) if kernel_size is None else kernel_size
        if kernel_size % 2 == 0 or not 1 <= kernel_size <= min(height, width):
            raise ValueError(f"kernel_size {kernel_size} must be odd and fit into {height}x{width} frames")
        if defects and min(height, width) < 2:
            raise ValueError(f"no pixel of {height}x{width} frames has neighbours on all sides, as defects need")
        self._architecture: dict[str, Any] = {"channels": channels, "height": height, "width": width}
        self._architecture |= {"kernel_size": kernel_size}
        self._architecture |= {name: True for name, used in (("defects", defects), ("shading", shading)) if used}
        self.curve = nn.Parameter(torch.zeros(channels, len(TONE_KNOTS)))
        self.offset = nn.Parameter(torch.zeros(1, channels, height, width))
        self.kernel = nn.Parameter(identity_kernel(channels, kernel_size))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.defect_step = nn.Parameter(torch.full((channels,), NO_STEP)) if defects else None
        self.gain = nn.Parameter(torch.ones(1, 1, height, width)) if shading else None
        self.black = nn.Parameter(torch.zeros(channels)) if shading else None

    def architecture(self) -> dict[str, Any]:
        """Return the arguments of the constructor, for the manifest of an artefact."""
        return dict(self._architecture)

    @property
    def branches(self) -> tuple[Homogenizer, ...]:
        """Itself: only a calibrate.split.SplitHomogenizer has several."""
        return (self,)

    @property
    def optional_parts(self) -> dict[str, bool]:
        """Which of the parts it has that not every homogenizer has, as arguments of the constructor."""
        return {"defects": self.defect_step is not None, "shading": self.gain is not None}

    @torch.no_grad()
    def with_parts(self, *, defects: bool = False, shading: bool = False) -> Homogenizer:
        """Return a copy that has these parts, too; one that is new changes nothing."""
        has = self.optional_parts
        parts = {"defects": defects or has["defects"], "shading": shading or has["shading"]}
        copy = Homogenizer(**self._architecture | parts).to(self.bias)
        copy.load_state_dict(copy.state_dict() | self.state_dict())
        return copy.requires_grad_(self.bias.requires_grad).train(self.training)

    def forward(self, frames: Tensor) -> Tensor:
        parts = (self.curve, self.offset, self.kernel, self.bias, self.defect_step, self.gain, self.black)
        return homogenize(frames, *parts)

    def correct_levels(self, frames: Tensor) -> Tensor:
        """Do to frames (N, C, H, W) what comes before the offset map."""
        return correct_levels(frames, self.curve, self.defect_step, self.gain, self.black)


def homogenize(
    frames: Tensor,
    curve: Tensor,
    offset: Tensor,
    kernel: Tensor,
    bias: Tensor,
    defect_step: Tensor | None = None,
    gain: Tensor | None = None,
    black: Tensor | None = None,
) -> Tensor:
    """Map frames (N, C, H, W) by the parameters of a `Homogenizer`."""
    corrected = correct_levels(frames, curve, defect_step, gain, black)
    padded = reflect_borders(corrected + offset, kernel.shape[-1] // 2)
    return convolve_in_blocks(padded, kernel, bias, KERNEL_BLOCK_PIXELS)


def correct_levels(
    frames: Tensor, curve: Tensor, defect_step: Tensor | None, gain: Tensor | None, black: Tensor | None
) -> Tensor:
    """Replace defective pixels, undo the shading and apply the tone curve, each where ρ has it."""
    if defect_step is not None:
        frames = replace_defects(frames, defect_step)
    if gain is not None and black is not None:
        frames = brighten(frames, gain, black)
    return apply_tone_curve(frames, curve)


def reflect_borders(frames: Tensor, margin: int) -> Tensor:
    """Pad frames (N, C, H, W) on each side with `margin` reflected pixels."""
    if frames.is_cuda and frames.requires_grad:
        padded: Tensor = _ReflectedBorders.apply(frames, margin)
        return padded
    return F.pad(frames, (margin,) * 4, mode="reflect")


class _ReflectedBorders(torch.autograd.Function):
    """F.pad(frames, mode="reflect") with a gradient that is the same in each run.

    PyTorch's own on a GPU adds with atomic operations, in any order: the same seed would not give the same homogenizer.
    """

    @staticmethod
    def forward(ctx: Any, frames: Tensor, margin: int) -> Tensor:
        ctx.margin = margin
        return F.pad(frames, (margin,) * 4, mode="reflect")

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        folded = gradients[0]
        for dimension in (2, 3):
            folded = _fold_borders(folded, ctx.margin, dimension)
        return folded, None


def _fold_borders(padded: Tensor, margin: int, dimension: int) -> Tensor:
    """Add what lies in the borders to the pixels that they reflect; the borders are gone then."""
    extent = padded.shape[dimension] - 2 * margin
    folded = padded.narrow(dimension, margin, extent).clone()
    folded.narrow(dimension, 1, margin).add_(padded.narrow(dimension, 0, margin).flip(dimension))
    end = padded.narrow(dimension, margin + extent, margin).flip(dimension)
    folded.narrow(dimension, extent - 1 - margin, margin).add_(end)
    return folded


def apply_tone_curve(frames: Tensor, curve: Tensor) -> Tensor:
    """Apply a piecewise linear curve to each channel; frames (N, C, H, W) keep their shape.

    curve: (C, len(TONE_KNOTS)). Each knot multiplies the slope above it by 1 + curve; zeros are the identity.
    """
    for knot, stretch in zip(TONE_KNOTS, curve.unbind(1), strict=True):
        frames = frames + stretch.view(1, -1, 1, 1) * torch.relu(frames - knot)
    return frames


def largest_kernel(height: int, width: int) -> int:
    """Return MAX_KERNEL_SIZE, or the largest odd size in pixels that fits into smaller frames."""
    shorter = min(height, width)
    return min(MAX_KERNEL_SIZE, shorter - 1 + shorter % 2)


def identity_kernel(channels: int, kernel_size: int) -> Tensor:
    """Return the kernel (C, C, k, k) that changes nothing: 1 at the centre tap from each channel to itself."""
    kernel = torch.zeros(channels, channels, kernel_size, kernel_size)
    kernel[range(channels), range(channels), kernel_size // 2, kernel_size // 2] = 1.0
    return kernel


def convolve_in_blocks(frames: Tensor, kernel: Tensor, bias: Tensor, block: int) -> Tensor:
    """Compute F.conv2d(frames, kernel, bias) on blocks of pixels, to the accuracy of float32 sums.

    Convolution libraries are fast when the channels fill a vector register; 3 channels do not. Moving each block of
    pixels into channels (sub-pixel convolution, Shi et al. 2016, "Real-time single image and video super-resolution")
    gives the same sums with a kernel of fewer and denser taps: 15x15 taps on blocks of 2x2 become 12 times 12 channels
    with 8x8 taps, and an eighth of them is zero.

    frames: (N, C, H, W); kernel: (O, C, k, k); bias: (O,); block: side of a block in pixels.
    Returns (N, O, H - k + 1, W - k + 1).
    """
    size = kernel.shape[-1]
    height, width = frames.shape[-2] - size + 1, frames.shape[-1] - size + 1
    below, right = (_padding_to_whole_blocks(extent, size, block) for extent in (height, width))
    blocks = F.pixel_unshuffle(F.pad(frames, (0, right, 0, below)), block)
    convolved = F.conv2d(blocks, _block_kernel(kernel, block), bias.repeat_interleave(block * block))
    return F.pixel_shuffle(convolved, block)[..., :height, :width]


def _block_taps(size: int, block: int) -> int:
    """Return the number of input blocks, in one direction, that one block of outputs depends on."""
    return -(-(size + block - 1) // block)


def _padding_to_whole_blocks(extent: int, size: int, block: int) -> int:
    """Return how many rows or columns of input are missing for whole blocks of `extent` outputs."""
    return (-(-extent // block) + _block_taps(size, block) - 1) * block - (extent + size - 1)


def _block_kernel(kernel: Tensor, block: int) -> Tensor:
    """Convert (O, C, k, k) to (O * block², C * block², taps, taps): one shifted kernel for each pixel of a block."""
    outputs, channels, size, _ = kernel.shape
    taps, places = _block_taps(size, block), range(block)
    room = taps * block - size
    shifted = [F.pad(kernel, (x, room - x, y, room - y)) for y in places for x in places]
    parts = torch.stack(shifted, 1).view(outputs * block**2, channels, taps, block, taps, block)
    return parts.permute(0, 1, 3, 5, 2, 4).reshape(outputs * block**2, channels * block**2, taps, taps)
