"""Cross-spectra of frames, and their average over directions: the form in which clean frames are remembered."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

SPECTRA_CHUNK_FRAMES = 64  # frames transformed at once; bounds memory for large frames


class RadialProfile(NamedTuple):
    """Cross-spectral density by spatial frequency.

    density: (B, C, C), real, in squared input units. Bin b holds b cycles over the longer side.
    """

    density: Tensor

    def at(self, height: int, width: int) -> Tensor:
        """Return the density (H, W, C, C) at each frequency of frames of the measured size."""
        return self.density[_bins(height, width).to(self.density.device)]


def radial_profile(spectra: Tensor) -> RadialProfile:
    """Average cross-spectra (H, W, C, C) over all frequencies of the same bin.

    The sums are made on the processor: those of a GPU have another order in each run.
    """
    height, width, *channels = spectra.shape
    bins = _bins(height, width).flatten()
    count = int(bins.max()) + 1
    total = torch.zeros(count, *channels).index_add_(0, bins, spectra.real.flatten(0, 1).float().cpu())
    return RadialProfile((total / torch.bincount(bins, minlength=count).clamp_min(1).view(-1, 1, 1)).to(spectra.device))


def cross_spectra(frames: Tensor) -> Tensor:
    """Return the cross-spectra of frames (N, C, H, W) between channels: (H, W, C, C), complex and Hermitian.

    The mean colour is subtracted and a Hann window of unit power applied, so that the mean over all frequencies is the
    channel covariance, in squared input units. Source: Welch 1967, without overlapping segments.
    """
    height, width = frames.shape[-2:]
    window = torch.hann_window(height)[:, None] * torch.hann_window(width)[None, :]
    window = (window / window.square().mean().sqrt()).to(frames.device)
    mean = frames.mean((0, 2, 3), keepdim=True)
    total = torch.zeros(1, device=frames.device)
    for chunk in frames.split(SPECTRA_CHUNK_FRAMES):
        spectrum = torch.fft.fft2((chunk - mean) * window)  # (n, C, H, W)
        total = total + torch.einsum("nchw,ndhw->hwcd", spectrum, spectrum.conj())
    return total / (len(frames) * height * width)


def spatial_frequencies(height: int, width: int) -> Tensor:
    """Return the spatial frequency (H, W) of each element of a Fourier transform, in cycles over the longer side."""
    fy, fx = torch.fft.fftfreq(height)[:, None], torch.fft.fftfreq(width)[None, :]
    return (fy.square() + fx.square()).sqrt() * max(height, width)


def _bins(height: int, width: int) -> Tensor:
    return spatial_frequencies(height, width).round().long()
