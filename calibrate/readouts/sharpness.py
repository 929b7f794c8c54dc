"""Blur, motion blur and temporal noise, from the power spectrum of what changes between pictures."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from calibrate.readouts.least_squares import least_squares
from calibrate.readouts.moments import fluctuation_spectrum
from calibrate.readouts.picture_statistics import PictureStatistics

NONE, BLUR, MOTION_BLUR = "", "blur", "motion-blur"
MIN_CYCLES = 2  # over a side: below, a picture has few waves, and its border counts
GAINS, NOISES = (1 / 16, 4.0), (0.0, 130.0)
MAX_SIGMA, MAX_LENGTH = 6.0, 24.0
LENS_LIMITS = {  # gain, size of the lens in pixels, noise
    NONE: (GAINS, (0.0, 1e-6), NOISES),
    BLUR: (GAINS, (0.0, MAX_SIGMA), NOISES),
    MOTION_BLUR: (GAINS, (1.0, MAX_LENGTH), NOISES),
}
START_SIZES = {NONE: (0.0,), BLUR: (0.8,), MOTION_BLUR: (1.7, 3.5, 8.0)}  # sizes to begin from: a box has many optima
MIN_POWER = 1e-6  # of what a lens leaves: keeps logarithms finite
LENS_PENALTY = 1.0  # of a lens, in the logarithm of the mean square residual


class Sharpness(NamedTuple):
    """gain: contrast by that of the healthy pictures. lens: BLUR, MOTION_BLUR or NONE, and its size in pixels.

    noise: sd of what black and white left of the temporal noise, grey levels.
    """

    gain: float
    lens: str
    size: float
    noise: float


def sharpness(
    healthy: PictureStatistics, recent: PictureStatistics, dead: float, near: Sharpness | None = None
) -> Sharpness:
    """Fit gain, lens and noise. dead: share of dead pixels. near: an earlier result, whose lens is kept."""
    sides = (healthy.totals.shape[-2], healthy.totals.shape[-1])
    problem = SpectrumPair(fluctuation_spectrum(healthy), fluctuation_spectrum(recent), dead, sides)
    if near is not None:
        return problem.fit(near.lens, [near.size], near.gain, near.noise)[0]
    fits = [problem.fit(lens, sizes) for lens, sizes in START_SIZES.items()]
    return min(fits, key=lambda fit: fit[1] + LENS_PENALTY * (fit[0].lens != NONE))[0]


class SpectrumPair(NamedTuple):
    """Spectra of healthy and recent pictures, the share of dead pixels, height and width."""

    before: Tensor
    after: Tensor
    dead: float
    sides: tuple[int, int]

    def fit(self, lens: str, sizes: Sequence[float], gain: float = 1.0, noise: float = 2.0) -> tuple[Sharpness, float]:
        """Return the best fit that starts from one of these sizes, and the logarithm of its mean square residual."""
        kept, weights = _kept(self.sides)

        def residuals(parameters: Tensor) -> Tensor:
            difference = self.after.log() - self._expected(lens, parameters, weights).log()
            return (difference * (weights / weights[kept].sum()).sqrt())[kept]

        low, high = torch.tensor(LENS_LIMITS[lens], dtype=torch.float64).T
        starts = [torch.tensor([gain, size, noise], dtype=torch.float64) for size in sizes]
        found = [least_squares(residuals, start, low, high) for start in starts]
        errors = [float(residuals(parameters).square().sum()) for parameters in found]
        error = min(errors)
        gain, size, noise = found[errors.index(error)].tolist()
        return Sharpness(gain, lens, size, noise), math.log(error + 1e-12)

    def _expected(self, lens: str, parameters: Tensor, weights: Tensor) -> Tensor:
        """Return the spectrum of recent pictures. Dead pixels make holes, which spread a share of the power evenly."""
        gain, size, noise = parameters.tolist()
        seen = self.before * gain**2 * TRANSFERS[lens](size, self.sides)
        mean = (seen * weights).sum() / weights.sum()
        return (1 - self.dead) ** 2 * seen + (1 - self.dead) * (self.dead * mean + noise**2)


def _kept(sides: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Return which frequencies count, and how many of the whole plane each stands for."""
    rows, columns = (torch.arange(side // 2 + 1) for side in sides)
    both = [torch.where((k == 0) | (2 * k == side), 1.0, 2.0) for k, side in zip((rows, columns), sides, strict=True)]
    return (rows[:, None] ** 2 + columns**2) >= MIN_CYCLES**2, torch.outer(*both).double()


def _no_lens(size: float, sides: tuple[int, int]) -> Tensor:
    return torch.ones((), dtype=torch.float64)


def _blur(sigma: float, sides: tuple[int, int]) -> Tensor:
    """Return how a Gaussian, sampled at whole pixels, changes the power."""
    reach = torch.arange(1, 4 * int(MAX_SIGMA) + 1, dtype=torch.float64)
    half = torch.exp(-reach.square() / (2 * max(sigma, 1e-3) ** 2))
    return torch.outer(*(_power(half, side) for side in sides))


def _motion_blur(length: float, sides: tuple[int, int]) -> Tensor:
    """Return how a sideways movement, a box of `length` pixels, changes the power."""
    reach = torch.arange(1, int(MAX_LENGTH) + 1, dtype=torch.float64)
    return _power(((length + 1) / 2 - reach).clamp(0, 1), sides[1])


def _power(half: Tensor, side: int) -> Tensor:
    """Return the power (side // 2 + 1,) behind a kernel of 1 in its middle and `half` on either side, of sum 1.

    A frequency behind a Hann window holds shares of its neighbours, which fill the gaps of a box.
    """
    frequency = 2 * torch.pi * torch.arange(-1, side // 2 + 2, dtype=torch.float64) / side
    waves = torch.cos(frequency[:, None] * torch.arange(1, len(half) + 1))
    power = ((1 + 2 * waves @ half) / (1 + 2 * half.sum())).square()
    return (power[:-2] + 4 * power[1:-1] + power[2:]) / 6 + MIN_POWER


TRANSFERS: dict[str, Callable[[float, tuple[int, int]], Tensor]] = {
    NONE: _no_lens,
    BLUR: _blur,
    MOTION_BLUR: _motion_blur,
}
