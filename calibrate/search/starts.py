"""Closed-form starts: the maps that give the drifted frames the second-order statistics of clean ones.

Second-order statistics leave one thing open: a rotation of colour space, which may differ between spatial
frequencies. With the same covariance before and after, C_s^1/2 U W C_t^-1/2 serves for every orthogonal U; the one of
least change is U = 1. Strong cross-talk turns the colours of large areas further than that of edges, so some other
rotations of the low frequencies are tried, and the frozen network says which of them it knows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from calibrate.homogenizer import Homogenizer
from calibrate.source.spectra import cross_spectra, cycles
from calibrate.source.training import Source

# px; a fixed pattern has 92 % and 99 % of its power in finer structure, and the mean of many pictures mostly has none.
# Where the camera always looks at the same kind of thing the mean has some, and the finer measure spares it.
PATTERN_SIGMAS = (1.0, 3.0)
RIDGE = 1e-3  # of the mean power: frequencies below it are noise and are not amplified
TURNED_BELOW = 3.0  # cycles over the frame, the width of the rotation's fall-off
ROTATIONS = 48  # random ones that are tried; from any rotation the nearest of them is mostly within 40 degrees
SPREADS = (0.5, 0.25)  # rad, how far around the KEPT best others are tried, NEAR around each
KEPT, NEAR = 3, 4
SEARCHED = ROTATIONS + 1 + len(SPREADS) * KEPT * NEAR  # rotations that a search looks at


def smooth(image: Tensor, sigma: float) -> Tensor:
    """Gaussian low-pass of (1, C, H, W) by sigma pixels, borders normalised."""
    radius = min(int(2 * sigma), min(image.shape[-2:]) - 1)
    x = torch.arange(-radius, radius + 1, dtype=image.dtype)
    line = torch.exp(-x.square() / (2 * sigma**2))
    kernel = (line[:, None] * line[None, :]).expand(image.shape[1], 1, -1, -1)
    weight = F.conv2d(torch.ones_like(image), kernel, padding=radius, groups=image.shape[1])
    return F.conv2d(image, kernel, padding=radius, groups=image.shape[1]) / weight


def offset_map(frames: Tensor, sigma: float) -> Tensor:
    """(1, C, H, W): what flattens the fixed pattern, the structure of the mean frame finer than sigma pixels."""
    mean = frames.mean(0, keepdim=True)
    return smooth(mean, sigma) - mean


def _root(matrix: Tensor, power: float) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    floor = values[..., -1:].clamp_min(1e-12) * 1e-6
    scaled = torch.maximum(values, floor).pow(power)
    return (vectors * scaled.unsqueeze(-2)) @ vectors.mH


def monge_map(target: Tensor, source: Tensor) -> Tensor:
    """The linear map of least change from covariance `target` to `source` (Pitie & Kokaram 2007); (..., C, C)."""
    half, inverse = _root(target, 0.5), _root(target, -0.5)
    return inverse @ _root(half @ source @ half, 0.5) @ inverse


@torch.no_grad()
def pattern_start(offset: Tensor) -> Homogenizer:
    """The identity but for an offset map (1, C, H, W), zero where there is no fixed pattern."""
    homogenizer = Homogenizer(*offset.shape[1:])
    homogenizer.offset.copy_(offset)
    return homogenizer


@torch.no_grad()
def colour_start(frames: Tensor, source: Source, offset: Tensor) -> Homogenizer:
    """Offset map (1, C, H, W) and one colour map for the whole frame."""
    homogenizer = pattern_start(offset)
    pixels = (frames + offset).transpose(0, 1).flatten(1)
    target = torch.cov(pixels).reshape(len(pixels), len(pixels))
    colour = monge_map(target + RIDGE * target.trace() * torch.eye(len(target)), source.covariance)
    centre = homogenizer.kernel.shape[-1] // 2
    homogenizer.kernel.zero_()
    homogenizer.kernel[:, :, centre, centre] = colour
    homogenizer.bias.copy_(source.mean - colour @ pixels.mean(1))
    return homogenizer


@torch.no_grad()
def negative_start(start: Homogenizer, whole: Tensor) -> Homogenizer:
    """What does to frames as `start`, which must not bend tones, does to their negative: `whole` (C,) less the frames.

    Second order leaves the sign of a single colour open, as it does the rotation of three. Thermal cameras have it as
    a setting, white-hot or black-hot.
    """
    negative = Homogenizer(**start.architecture())
    negative.offset.copy_(-start.offset)
    negative.kernel.copy_(-start.kernel)
    negative.bias.copy_(start.bias + start.kernel.sum((2, 3)) @ whole)
    return negative


class SpectralStarts:
    """Offset map and one colour map for each spatial frequency, which together make a Wiener-like kernel.

    Made for frames (N, C, H, W) and an offset map; gives one start for every rotation of the colours of its low
    frequencies.
    """

    def __init__(self, frames: Tensor, source: Source, offset: Tensor):
        self._source, self._offset, self._shape = source, offset, frames.shape[1:]
        flat = frames + offset
        self._mean = flat.mean((0, 2, 3))
        target = _with_ridge(cross_spectra(flat))
        clean = _with_ridge(source.profile.at(*self._shape[1:]).to(target))
        self._unmix, self._mix = _root(target, -0.5), _root(clean, 0.5)
        self._turn = monge_map(target, clean)  # (H, W, C, C)
        self._turn = _root(clean, -0.5) @ self._turn @ _root(target, 0.5)

    @torch.no_grad()
    def start(self, rotation: Tensor | None = None) -> Homogenizer:
        """The homogenizer for a rotation vector (radians, C = 3 colours), by default that of least change."""
        turn = self._turn if rotation is None else self._rotations(rotation) @ self._turn
        maps = self._mix @ turn @ self._unmix
        homogenizer = pattern_start(self._offset)
        response = torch.fft.fftshift(torch.fft.ifft2(maps.permute(2, 3, 0, 1)).real, dim=(-2, -1))
        kernel = _centre(response, homogenizer.kernel.shape[-1]).flip(-2, -1)  # conv2d correlates
        homogenizer.kernel.copy_(kernel)
        homogenizer.bias.copy_(self._source.mean - kernel.sum((2, 3)) @ self._mean)
        return homogenizer

    def _rotations(self, rotation: Tensor) -> Tensor:
        """(H, W, 3, 3): the whole rotation at frequency zero, none at high ones."""
        share = torch.exp(-(cycles(*self._shape[1:]) / TURNED_BELOW).square() / 2)
        return torch.matrix_exp(share[..., None, None] * _skew(rotation)).to(self._turn)


def search_rotation(score: Callable[[Tensor], float], generator: torch.Generator) -> Tensor:
    """The rotation vector (3,) of least score: the best of none and many random ones, then of some around the best."""
    ranked = _ranked(score, [torch.zeros(3), *random_rotations(ROTATIONS, generator)])
    for spread in SPREADS:
        centres = [vector for _, vector in ranked[:KEPT] for _ in range(NEAR)]
        near = [vector + spread * torch.randn(3, generator=generator) for vector in centres]
        ranked = sorted(ranked + _ranked(score, near), key=lambda pair: pair[0])
    return ranked[0][1]


def _ranked(score: Callable[[Tensor], float], vectors: Sequence[Tensor]) -> list[tuple[float, Tensor]]:
    """Pairs of score and vector, the least first; what has no finite score is last."""
    scores = [score(vector) for vector in vectors]
    pairs = [(s if math.isfinite(s) else math.inf, v) for s, v in zip(scores, vectors, strict=True)]
    return sorted(pairs, key=lambda pair: pair[0])


def random_rotations(count: int, generator: torch.Generator) -> Tensor:
    """Rotation vectors (count, 3), radians, of rotations spread evenly over all there are (Shoemake 1992)."""
    quaternions = F.normalize(torch.randn(count, 4, generator=generator), dim=1)
    quaternions = quaternions * quaternions[:, :1].sign()
    angle = 2 * torch.acos(quaternions[:, :1].clamp(max=1))
    return angle * F.normalize(quaternions[:, 1:], dim=1)


def _skew(vector: Tensor) -> Tensor:
    """The matrix (3, 3) of the cross product with a vector (3,)."""
    return torch.linalg.cross(torch.eye(3), vector.expand(3, 3))


def _with_ridge(spectra: Tensor) -> Tensor:
    power = spectra.diagonal(dim1=-2, dim2=-1).real.mean()
    return spectra + RIDGE * power * torch.eye(spectra.shape[-1])


def _centre(response: Tensor, size: int) -> Tensor:
    """The central size x size taps of (C, C, H, W)."""
    row, column, half = response.shape[-2] // 2, response.shape[-1] // 2, size // 2
    return response[..., row - half : row + half + 1, column - half : column + half + 1]
