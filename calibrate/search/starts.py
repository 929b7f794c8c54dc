"""Closed-form starts: homogenizers that give drifted frames the second-order statistics of clean frames.

Second-order statistics do not determine a rotation of colour space, which may differ between spatial frequencies:
for target covariance C_t, source covariance C_s and the polar factor W, every C_s^1/2 U W C_t^-1/2 with orthogonal U
gives C_s. The smallest change is U = 1. Strong cross-talk rotates the colours of large areas further than those of
edges. Other rotations of the low frequencies are therefore tried, and the frozen network decides between them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from calibrate.homogenizer import Homogenizer
from calibrate.source.description import Source
from calibrate.source.spectra import cross_spectra, spatial_frequencies

# Scales in pixels below which the mean frame is a fixed pattern. A white pattern has 92 % and 99 % of its power there;
# the mean of many pictures mostly has none. If the camera always looks at the same kind of scene, the mean has some
# fine structure, and the smaller scale spares it.
PATTERN_SIGMAS_PX = (1.0, 3.0)
POWER_RIDGE = 1e-3  # added power, relative to the mean power: frequencies with less are noise and not amplified
ROTATION_CUTOFF_CYCLES = 3.0  # cycles per frame: standard deviation of the Gaussian by which a rotation falls off
RANDOM_ROTATIONS = 48  # random rotations in a search; one of them is mostly within 40 degrees of any rotation
REFINEMENT_SPREADS_RAD = (0.5, 0.25)  # standard deviation of the tries around the best rotations, one for each turn
# Matrices up to which they are decomposed on the processor: a GPU's library takes longer to start than these 10 ms.
MAX_MATRICES_ON_PROCESSOR = 4096
REFINED_ROTATIONS, TRIES_PER_ROTATION = 3, 4  # best rotations refined in a turn, and tries around each


def gaussian_blur(image: Tensor, sigma: float) -> Tensor:
    """Low-pass (1, C, H, W) by a Gaussian of sigma pixels, cut at 2 sigma and normalised at the borders."""
    radius = min(int(2 * sigma), min(image.shape[-2:]) - 1)
    x = torch.arange(-radius, radius + 1, dtype=image.dtype, device=image.device)
    line = torch.exp(-x.square() / (2 * sigma**2))
    kernel = (line[:, None] * line[None, :]).expand(image.shape[1], 1, -1, -1)
    weight = F.conv2d(torch.ones_like(image), kernel, padding=radius, groups=image.shape[1])
    return F.conv2d(image, kernel, padding=radius, groups=image.shape[1]) / weight


def offset_map(frames: Tensor, sigma: float) -> Tensor:
    """Return the offset (1, C, H, W) that removes the fixed pattern of frames (N, C, H, W), in their units.

    The pattern is the structure of the mean frame that is finer than sigma pixels.
    """
    mean = frames.mean(0, keepdim=True)
    return gaussian_blur(mean, sigma) - mean


def monge_map(target: Tensor, source: Tensor) -> Tensor:
    """Return the linear map of smallest change from covariance `target` to covariance `source`, all (..., C, C).

    T^-1/2 (T^1/2 S T^1/2)^1/2 T^-1/2: the linear Monge-Kantorovich map of Pitie & Kokaram (2007), "The linear
    Monge-Kantorovitch linear colour mapping for example-based colour transfer".
    """
    half, inverse = _hermitian_powers(target, 0.5, -0.5)
    return _monge_map(half, inverse, source)


def _monge_map(half: Tensor, inverse: Tensor, source: Tensor) -> Tensor:
    """Return the map from the target's T^1/2 and T^-1/2."""
    (root,) = _hermitian_powers(half @ source @ half, 0.5)
    return inverse @ root @ inverse


def _hermitian_powers(matrix: Tensor, *powers: float) -> list[Tensor]:
    """Raise positive Hermitian matrices (..., C, C) to powers. Eigenvalues are at least 1e-6 of the largest."""
    few = matrix.shape[:-2].numel() <= MAX_MATRICES_ON_PROCESSOR
    values, vectors = (part.to(matrix.device) for part in torch.linalg.eigh(matrix.cpu() if few else matrix))
    floor = values[..., -1:].clamp_min(1e-12) * 1e-6
    floored = torch.maximum(values, floor)
    return [(vectors * floored.pow(power).unsqueeze(-2)) @ vectors.mH for power in powers]


@torch.no_grad()
def pattern_start(offset: Tensor) -> Homogenizer:
    """Return the identity plus an offset map (1, C, H, W), which is zero without a fixed pattern."""
    homogenizer = Homogenizer(*offset.shape[1:]).to(offset.device)
    homogenizer.offset.copy_(offset)
    return homogenizer


@torch.no_grad()
def colour_start(frames: Tensor, source: Source, offset: Tensor) -> Homogenizer:
    """Return an offset map (1, C, H, W) with one colour map that gives frames (N, C, H, W) the source's covariance."""
    homogenizer = pattern_start(offset)
    pixels = (frames + offset).transpose(0, 1).flatten(1)
    target = torch.cov(pixels).reshape(len(pixels), len(pixels))
    colour = monge_map(target + POWER_RIDGE * target.trace() * torch.eye(len(target)).to(target), source.covariance)
    centre = homogenizer.kernel.shape[-1] // 2
    homogenizer.kernel.zero_()
    homogenizer.kernel[:, :, centre, centre] = colour
    homogenizer.bias.copy_(source.mean - colour @ pixels.mean(1))
    return homogenizer


@torch.no_grad()
def negative_start(start: Homogenizer, whole: Tensor) -> Homogenizer:
    """Convert a start fitted to `whole - frames` into one for `frames`.

    start: without a tone curve. whole: (C,) the sum of black and white, in normalised input units.
    Second-order statistics do not determine the sign of a single colour. Thermal cameras have it as a setting:
    white-hot or black-hot.
    """
    negative = Homogenizer(**start.architecture()).to(whole.device)
    negative.offset.copy_(-start.offset)
    negative.kernel.copy_(-start.kernel)
    negative.bias.copy_(start.bias + start.kernel.sum((2, 3)) @ whole)
    return negative


class SpectralStarts:
    """Offset map with one colour map for each spatial frequency: together a kernel like a Wiener filter.

    There is one start for every rotation of the colours of the low frequencies.
    frames: (N, C, H, W). source: of clean frames of the same size. offset: (1, C, H, W).
    """

    def __init__(self, frames: Tensor, source: Source, offset: Tensor):
        self._source, self._offset, self._shape = source, offset, frames.shape[1:]
        flat = frames + offset
        self._mean = flat.mean((0, 2, 3))
        target = _with_ridge(cross_spectra(flat))
        clean = _with_ridge(source.profile.at(*self._shape[1:]).to(target))
        half, self._unmix = _hermitian_powers(target, 0.5, -0.5)
        self._mix, unmix_clean = _hermitian_powers(clean, 0.5, -0.5)
        self._polar = unmix_clean @ _monge_map(half, self._unmix, clean) @ half  # (H, W, C, C)
        frequencies = spatial_frequencies(*self._shape[1:])
        self._share = torch.exp(-(frequencies / ROTATION_CUTOFF_CYCLES).square() / 2).to(frames.device)
        self._identity = pattern_start(offset)

    @torch.no_grad()
    def start(self, rotation: Tensor | None = None) -> Homogenizer:
        """Return the start for a rotation vector (3,) in radians, for 3 channels. None is the smallest change."""
        homogenizer = pattern_start(self._offset)
        for name, value in self._weights(rotation).items():
            homogenizer.get_parameter(name).copy_(value)
        return homogenizer

    @torch.no_grad()
    def restore(self, frames: Tensor, rotation: Tensor) -> Tensor:
        """Do to frames (N, C, H, W) what the start for this rotation does; can be captured (calibrate.gpu)."""
        restored: Tensor = functional_call(self._identity, self._weights(rotation), (frames,))
        return restored

    def _weights(self, rotation: Tensor | None) -> dict[str, Tensor]:
        unitary = self._polar if rotation is None else self._rotations(rotation) @ self._polar
        maps = self._mix @ unitary @ self._unmix
        response = torch.fft.fftshift(torch.fft.ifft2(maps.permute(2, 3, 0, 1)).real, dim=(-2, -1))
        half = self._identity.kernel.shape[-1] // 2
        row, column = response.shape[-2] // 2, response.shape[-1] // 2
        central = response[..., row - half : row + half + 1, column - half : column + half + 1]
        kernel = central.flip(-2, -1)  # conv2d correlates
        return {"kernel": kernel, "bias": self._source.mean - kernel.sum((2, 3)) @ self._mean}

    def _rotations(self, rotation: Tensor) -> Tensor:
        """Return the rotation of each frequency (H, W, 3, 3): the whole rotation at zero, none at high ones.

        By the formula of Rodrigues (1840): 1 + sin(a)/a K + (1 - cos(a))/a² K² for the angle a.
        """
        identity = torch.eye(3, device=rotation.device)
        cross_product = torch.linalg.cross(identity, rotation.expand(3, 3))  # its matrix, the generator
        half = (self._share * rotation.norm() / 2).clamp_min(1e-4)  # of the angle; sin(x) / x is 1 below
        once = self._share * (2 * half).sin() / (2 * half)
        twice = (self._share * half.sin() / half).square() / 2
        square = cross_product @ cross_product
        return (identity + once[..., None, None] * cross_product + twice[..., None, None] * square).to(self._polar)


def _with_ridge(spectra: Tensor) -> Tensor:
    power = spectra.diagonal(dim1=-2, dim2=-1).real.mean()
    return spectra + POWER_RIDGE * power * torch.eye(spectra.shape[-1], device=spectra.device)


def search_rotation(score: Callable[[Tensor], float], generator: torch.Generator) -> Tensor:
    """Return the rotation vector (3,) in radians with the lowest score that a random search finds.

    The search tries no rotation and RANDOM_ROTATIONS random ones, then others around the best. A score that is not
    finite counts as the worst.
    generator: one of the processor, which makes the vectors.
    """
    ranked = _ranked(score, [torch.zeros(3), *random_rotations(RANDOM_ROTATIONS, generator)])
    for spread in REFINEMENT_SPREADS_RAD:
        centres = [vector for _, vector in ranked[:REFINED_ROTATIONS] for _ in range(TRIES_PER_ROTATION)]
        near = [vector + spread * torch.randn(3, generator=generator) for vector in centres]
        ranked = sorted(ranked + _ranked(score, near), key=lambda pair: pair[0])
    return ranked[0][1]


def _ranked(score: Callable[[Tensor], float], vectors: Sequence[Tensor]) -> list[tuple[float, Tensor]]:
    """Return pairs of score and vector, the lowest score first; a score that is not finite counts as infinite."""
    scores = [score(vector) for vector in vectors]
    pairs = [(s if math.isfinite(s) else math.inf, v) for s, v in zip(scores, vectors, strict=True)]
    return sorted(pairs, key=lambda pair: pair[0])


def random_rotations(count: int, generator: torch.Generator) -> Tensor:
    """Draw rotation vectors (count, 3) in radians, uniform over all rotations: random unit quaternions (Shoemake 1992).

    The length of a vector is its angle, 0 to pi.
    """
    quaternions = F.normalize(torch.randn(count, 4, generator=generator), dim=1)
    quaternions = quaternions * quaternions[:, :1].sign()
    angle = 2 * torch.acos(quaternions[:, :1].clamp(max=1))
    return angle * F.normalize(quaternions[:, 1:], dim=1)
