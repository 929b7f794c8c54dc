"""Descriptions of clean frames: their colours and spectrum, and the values that an image can have."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from calibrate.source.spectra import RadialProfile, cross_spectra, radial_profile

Shape = tuple[int, int, int]  # (C, H, W) of the network's input


def frame_shape(frames: Tensor) -> Shape:
    """Return (C, H, W) of frames (N, C, H, W)."""
    _, channels, height, width = frames.shape
    return channels, height, width


class Limits(NamedTuple):
    """The lowest and the highest value of each channel that an image can have, in normalised input units.

    black, white: (C,) each. Channel statistics hardly change when the colours of large areas are rotated. Values
    darker than black reveal such a rotation.
    """

    black: Tensor
    white: Tensor

    @staticmethod
    def of(mean: Sequence[float], std: Sequence[float]) -> Limits:
        """Return the limits of images with values from 0 to 1 that are normalised as (value - mean) / std."""
        return Limits(*((level - torch.tensor(mean)) / torch.tensor(std) for level in (0.0, 1.0)))

    def to(self, device: torch.device) -> Limits:
        """Return the same limits on another device."""
        return Limits(self.black.to(device), self.white.to(device))

    def excess(self, frames: Tensor) -> Tensor:
        """Return the mean square (N,) by which values of frames (N, C, H, W) exceed the limits."""
        black, white = self.black.view(-1, 1, 1), self.white.view(-1, 1, 1)
        return (frames - frames.clamp(black, white)).square().mean((1, 2, 3))


class Source(NamedTuple):
    """Clean frames to second order, in normalised input units.

    mean: (C,) mean colour. covariance: (C, C) of the channels. profile: how the covariance spreads over frequencies.
    """

    mean: Tensor
    covariance: Tensor
    profile: RadialProfile

    def to(self, device: torch.device) -> Source:
        """Return the same description on another device."""
        density = RadialProfile(self.profile.density.to(device))
        return Source(self.mean.to(device), self.covariance.to(device), density)


def measured_source(frames: Tensor) -> Source:
    """Describe frames (N, C, H, W) that are known to be clean. A few hundred frames are enough."""
    pixels = frames.transpose(0, 1).flatten(1)
    covariance = torch.cov(pixels).reshape(len(pixels), len(pixels))
    return Source(pixels.mean(1), covariance, radial_profile(cross_spectra(frames)))
