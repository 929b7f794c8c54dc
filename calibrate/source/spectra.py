"""Cross-spectra of frames, and their average over directions, which is what is kept of clean frames."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

CHUNK = 64  # frames at once; bounds memory at large ones


class Profile(NamedTuple):
    """Cross-spectral density by spatial frequency: (B, C, C), real, bin b at b cycles over the longer side."""

    density: Tensor

    def at(self, height: int, width: int) -> Tensor:
        """(H, W, C, C) for frames of the size that it was taken from."""
        return self.density[_bins(height, width)]


def radial_profile(spectra: Tensor) -> Profile:
    """The average of cross-spectra (H, W, C, C) over all frequencies of the same bin."""
    height, width, *channels = spectra.shape
    bins = _bins(height, width).flatten()
    count = int(bins.max()) + 1
    total = torch.zeros(count, *channels).index_add_(0, bins, spectra.real.flatten(0, 1).float())
    return Profile(total / torch.bincount(bins, minlength=count).clamp_min(1).view(-1, 1, 1))


def cross_spectra(frames: Tensor) -> Tensor:
    """Hann-windowed cross-spectra (H, W, C, C), complex Hermitian; their mean over frequencies is the covariance."""
    height, width = frames.shape[-2:]
    window = torch.hann_window(height)[:, None] * torch.hann_window(width)[None, :]
    window = window / window.square().mean().sqrt()
    mean = frames.mean((0, 2, 3), keepdim=True)
    total = torch.zeros(1)
    for chunk in frames.split(CHUNK):
        spectrum = torch.fft.fft2((chunk - mean) * window)  # (n, C, H, W)
        total = total + torch.einsum("nchw,ndhw->hwcd", spectrum, spectrum.conj())
    return total / (len(frames) * height * width)


def cycles(height: int, width: int) -> Tensor:
    """(H, W) the frequency of each place of a Fourier transform, in cycles over the longer side."""
    fy, fx = torch.fft.fftfreq(height)[:, None], torch.fft.fftfreq(width)[None, :]
    return (fy.square() + fx.square()).sqrt() * max(height, width)


def _bins(height: int, width: int) -> Tensor:
    return cycles(height, width).round().long()
