"""How far a homogenizer is from the identity: each of its parts, and what they do together."""

from __future__ import annotations

from dataclasses import dataclass
from math import cos, pi
from typing import NamedTuple

import torch
from torch import Tensor

from calibrate.homogenizer import Homogenizer, identity_kernel

FREQUENCIES_A_TAP = 16  # that a kernel's gain is looked at, in each direction; 15 taps of 3 channels take 0.05 s


class Range(NamedTuple):
    """The least and the most that something is anywhere."""

    least: float
    most: float


@dataclass(frozen=True)
class Extent:
    """What a homogenizer is, in numbers; the identity has zeros and, where something multiplies, ones.

    curve, offset, kernel, bias: the largest distance of a parameter from that of the identity, offset and bias in
    units of the network's input; kernel_size: in pixels.
    slope: of the tone curve; where it is not above 0, different values become the same.
    gain: of the kernel for one spatial frequency and mixture of channels, the singular values of its transfer matrix.
    jacobian: how much a difference between two frames shrinks or grows, wherever it is farther from the border than
    half the kernel. Nearer to it, where frames are reflected, it may grow twice as much, or three times where the
    kernel is as wide as the frame.
    """

    curve: float
    offset: float
    kernel: float
    bias: float
    kernel_size: int
    slope: Range
    gain: Range
    jacobian: Range

    @classmethod
    @torch.no_grad()
    def of(cls, homogenizer: Homogenizer) -> Extent:
        """Measured in float64, where no float32 parameter overflows."""
        curve, offset, kernel, bias = (
            getattr(homogenizer, part).detach().cpu().double() for part in ("curve", "offset", "kernel", "bias")
        )
        slopes, gain = _slopes(curve), kernel_gain(kernel)
        steepest = float(slopes.abs().max())
        slope = Range(float(slopes.min()), float(slopes.max()))
        return cls(
            curve=float(curve.abs().max()),
            offset=float(offset.abs().max()),
            kernel=float((kernel - identity_kernel(len(kernel), kernel.shape[-1])).abs().max()),
            bias=float(bias.abs().max()),
            kernel_size=kernel.shape[-1],
            slope=slope,
            gain=gain,
            jacobian=Range(max(slope.least, 0.0) * gain.least, steepest * gain.most),
        )


def _slopes(curve: Tensor) -> Tensor:
    """(C, 1 + knots): of each channel below the first knot, and above each of them in turn."""
    return torch.cat([torch.ones(len(curve), 1), 1 + curve], 1).cumprod(1)


def kernel_gain(kernel: Tensor) -> Range:
    """The extreme singular values of a kernel (C, C, k, k) over the frequencies.

    `least` is that of the frequencies looked at. `most` holds at all others too, and is at most 1 % too high: between
    n points a trigonometric polynomial of degree m is at most 1 / cos(pi m / n) times what it is at them, in each
    direction (Ehlich and Zeller, Mathematische Zeitschrift 86, 1964).
    """
    count = FREQUENCIES_A_TAP * kernel.shape[-1]
    transfer = torch.fft.rfft2(_at_origin(kernel, count))  # (C, C, count, count // 2 + 1), the rest is conjugate
    values = torch.linalg.svdvals(transfer.permute(2, 3, 0, 1))
    between = cos(pi * _degree(kernel) / count) ** 2
    return Range(float(values.min()), float(values.max()) / between)


def _at_origin(kernel: Tensor, count: int) -> Tensor:
    """The kernel in (C, C, count, count) zeros, its centre at 0, 0."""
    margin = kernel.shape[-1] // 2
    placed = kernel.new_zeros(*kernel.shape[:2], count, count)
    placed[..., : kernel.shape[-2], : kernel.shape[-1]] = kernel
    return placed.roll((-margin, -margin), (2, 3))


def _degree(kernel: Tensor) -> int:
    """How far from the centre, in either direction, the farthest tap is that is not zero."""
    taps = kernel.abs().amax((0, 1)).nonzero() - kernel.shape[-1] // 2
    return int(taps.abs().max()) if len(taps) else 0
