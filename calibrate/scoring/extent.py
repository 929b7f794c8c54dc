"""Measure how far a homogenizer is from the identity: each of its parts, and all of them together."""

from __future__ import annotations

from dataclasses import dataclass
from math import cos, inf, pi
from typing import NamedTuple

import torch
from torch import Tensor

from calibrate.homogenizer import Homogenizer, identity_kernel

FREQUENCIES_PER_TAP = 16  # for the gain of a kernel, in each direction; 0.05 s for 15 taps and 3 channels


class Range(NamedTuple):
    """The least and the largest value of a quantity."""

    least: float
    most: float


@dataclass(frozen=True)
class Extent:
    """The size of what a homogenizer does. For the identity, distances are 0 and factors are 1.

    curve, offset, kernel, bias: largest distance of a parameter from that of the identity. Offset and bias are in
    normalised input units, curve and kernel have no unit. kernel_size: in pixels.
    slope: of the tone curve. If it is not above 0, different values become the same.
    gain: of the kernel for one spatial frequency and mixture of channels: singular values of its transfer matrix.
    shading: factor for the light of a pixel. black: largest absolute value that counts as no light there, in normalised
    input units.
    defect_step: least distance from its neighbours by which a pixel is replaced, in the same units; inf without that.
    jacobian: factor by which the difference between two frames shrinks or grows, farther from the border than half the
    kernel. Nearer to the border, where frames are reflected, it may grow twice as much, and three times for a kernel
    as wide as the frame. It is that of frames in which no pixel is replaced.
    """

    curve: float
    offset: float
    kernel: float
    bias: float
    kernel_size: int
    slope: Range
    gain: Range
    shading: Range
    black: float
    defect_step: float
    jacobian: Range

    @classmethod
    @torch.no_grad()
    def of(cls, homogenizer: Homogenizer) -> Extent:
        """Measure a homogenizer, in float64 so that no float32 parameter overflows."""
        curve, offset, kernel, bias = (
            getattr(homogenizer, part).detach().cpu().double() for part in ("curve", "offset", "kernel", "bias")
        )
        slopes = torch.cat([torch.ones(len(curve), 1), 1 + curve], 1).cumprod(1)  # (C, 1 + knots), from low values on
        gain = kernel_gain(kernel)
        steepest = float(slopes.abs().max())
        slope = Range(float(slopes.min()), float(slopes.max()))
        light, black, step = homogenizer.gain, homogenizer.black, homogenizer.defect_step
        shading = Range(1.0, 1.0) if light is None else Range(float(light.min()), float(light.max()))
        brightest = max(abs(shading.least), abs(shading.most))
        return cls(
            curve=float(curve.abs().max()),
            offset=float(offset.abs().max()),
            kernel=float((kernel - identity_kernel(len(kernel), kernel.shape[-1])).abs().max()),
            bias=float(bias.abs().max()),
            kernel_size=kernel.shape[-1],
            slope=slope,
            gain=gain,
            shading=shading,
            black=0.0 if black is None else float(black.abs().max()),
            defect_step=inf if step is None else float(step.min()),
            jacobian=Range(
                max(slope.least, 0.0) * max(shading.least, 0.0) * gain.least, steepest * brightest * gain.most
            ),
        )


def kernel_gain(kernel: Tensor) -> Range:
    """Return the extreme singular values of a kernel (C, C, k, k) over all spatial frequencies.

    `least` is that of the frequencies that are computed. `most` is a bound for all frequencies, at most 1 % too high:
    between n points a trigonometric polynomial of degree m is at most 1 / cos(pi m / n) times its largest value at
    them, in each direction (Ehlich & Zeller 1964, Mathematische Zeitschrift 86).
    """
    size, count = kernel.shape[-1], FREQUENCIES_PER_TAP * kernel.shape[-1]
    placed = kernel.new_zeros(*kernel.shape[:2], count, count)
    placed[..., :size, :size] = kernel
    centred = placed.roll((-(size // 2), -(size // 2)), (2, 3))  # the centre tap is at 0, 0
    transfer = torch.fft.rfft2(centred)  # (C, C, count, count // 2 + 1), the rest is conjugate
    values = torch.linalg.svdvals(transfer.permute(2, 3, 0, 1))
    between = cos(pi * _degree(kernel) / count) ** 2
    return Range(float(values.min()), float(values.max()) / between)


def _degree(kernel: Tensor) -> int:
    """Return the distance in taps, in either direction, from the centre to the farthest tap that is not zero."""
    taps = kernel.abs().amax((0, 1)).nonzero() - kernel.shape[-1] // 2
    return int(taps.abs().max()) if len(taps) else 0
