"""Haze, exposure, black level, colour gains and gamma: what bends the curve of recent quantiles over healthy ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor

from calibrate.readouts.clipping import WHITE, normal_nodes
from calibrate.readouts.colour import mixing
from calibrate.readouts.least_squares import least_squares
from calibrate.readouts.moments import quantiles
from calibrate.readouts.picture_statistics import SQUARES, PictureStatistics

AIRLIGHT = 220.0  # grey level of fog in daylight: bright, not white
QUANTILES = 128
NOISE_NODES = 9  # values for a normal distribution
MAX_TONE_KINDS = 2  # at once: with more, nearly every curve can be explained
TONE_KIND_PENALTY = 0.35  # in the logarithm of the mean square residual
FLOOR_LEVELS = 1.5  # residual that nothing explains: rounding, and models that are not exact
HAZE, EXPOSURE, BLACK_LEVEL, GAIN, GAMMA = "haze", "exposure", "black-level", "gain", "gamma"
# Parameters of each kind and their limits, with the neutral value as start. Gains and gamma are logarithms.
LIMITS_OF = {
    HAZE: (0.0, 0.95),
    EXPOSURE: (-6.0, 4.0),
    BLACK_LEVEL: (-120.0, 120.0),
    GAIN: (-1.6, 1.6),
    GAMMA: (-1.6, 1.6),
}


@dataclass(frozen=True)
class Before:
    """Healthy values as they meet the tone curve.

    values: (C, QUANTILES, m), equally likely, in m parts of the picture of one size. shade: (m,), share of the light
    that the lens lets pass to each. noise: sd of all that is added before the curve.
    """

    values: Tensor
    shade: Tensor
    noise: float

    def bent(self, kinds: Sequence[str], parameters: Tensor) -> Tensor:
        """Return equally likely values (C, QUANTILES) behind the curve of some kinds."""
        found = by_kind(kinds, parameters, len(self.values))
        haze = found[HAZE]
        light = (self.values * (1 - haze) + AIRLIGHT * haze) * self.shade
        light = (light * 2 ** found[EXPOSURE]).flatten(1)
        if self.noise > 0:
            light = (light[..., None] + self.noise * normal_nodes(NOISE_NODES)).flatten(1)
        light = (light + found[BLACK_LEVEL]) * found[GAIN].exp()[:, None]
        light = WHITE * (light.clamp(0, WHITE) / WHITE) ** found[GAMMA].exp()
        if light.shape[1] == QUANTILES:
            return light  # still in order
        return light.sort(1).values.view(len(light), QUANTILES, -1).mean(2)


def by_kind(kinds: Sequence[str], parameters: Tensor, channels: int) -> dict[str, Tensor]:
    """Return the value of each kind, neutral where it is not among `kinds`; the gain (C,), of green 0."""
    neutral = torch.zeros((), dtype=torch.float64)
    found = dict.fromkeys(LIMITS_OF, neutral) | {GAIN: torch.zeros(channels, dtype=torch.float64)}
    at = 0
    for kind in kinds:
        if kind == GAIN:
            red, blue = parameters[at], parameters[at + 1]
            found[GAIN], at = torch.stack([red, neutral, blue]), at + 2
        else:
            found[kind], at = parameters[at], at + 1
    return found


def blurred_quantiles(statistics: PictureStatistics, variance: float, number: int) -> Tensor:
    """Return quantiles (C, number) of pictures blurred by a Gaussian of so many squared pixels, on each axis.

    The mean of k x k pixels is a blur of (k^2 - 1) / 12; between two of them quantiles are interpolated.
    """
    counts = statistics.histograms.sum(0)
    known = [(square**2 - 1) / 12 for square in SQUARES]
    upper = next((i for i in range(1, len(known)) if known[i] >= variance), len(known) - 1)
    low, high = (quantiles(counts[i], number) for i in (upper - 1, upper))
    share = (min(variance, known[upper]) ** 0.5 - known[upper - 1] ** 0.5) / (
        known[upper] ** 0.5 - known[upper - 1] ** 0.5
    )
    return low + share * (high - low)


def mixed(values: Tensor, mean: Tensor, covariance: Tensor, fraction: float) -> Tensor:
    """Return quantiles (..., 3, n) behind a cross-talk: moved and stretched as mean and covariance of colours are."""
    matrix = mixing(fraction)
    stretch = ((matrix @ covariance @ matrix.T).diagonal() / covariance.diagonal()).sqrt()
    return (values - mean[:, None]) * stretch[:, None] + (matrix @ mean)[:, None]


def candidates(channels: int) -> list[tuple[str, ...]]:
    """Return the combinations of kinds to try."""
    kinds = [kind for kind in LIMITS_OF if kind != GAIN or channels == 3]
    return [chosen for count in range(MAX_TONE_KINDS + 1) for chosen in combinations(kinds, count)]


def fit_tone(
    before: Before, after: Tensor, scale: Tensor, kinds: tuple[str, ...], start: Tensor | None = None
) -> tuple[Tensor, float]:
    """Return the parameters of some kinds, and the mean square that they leave, in units of `scale` (C, QUANTILES)."""

    def residuals(parameters: Tensor) -> Tensor:
        return ((before.bent(kinds, parameters) - after) / scale).flatten() / after.numel() ** 0.5

    limits = [LIMITS_OF[kind] for kind in kinds for _ in range(2 if kind == GAIN else 1)]
    if not limits:
        return torch.zeros(0, dtype=torch.float64), float(residuals(torch.zeros(0)).square().sum())
    low, high = torch.tensor(limits, dtype=torch.float64).T
    found = least_squares(residuals, torch.zeros_like(low) if start is None else start, low, high)
    return found, float(residuals(found).square().sum())


def choose_tone(before: Before, after: Tensor, scale: Tensor) -> tuple[tuple[str, ...], Tensor]:
    """Return the kinds that explain the recent quantiles (C, QUANTILES) best, and their parameters."""
    fits = {kinds: fit_tone(before, after, scale, kinds) for kinds in candidates(len(after))}

    def cost(kinds: tuple[str, ...]) -> float:
        return float(torch.tensor(1 + fits[kinds][1]).log()) + TONE_KIND_PENALTY * len(kinds)

    best = min(fits, key=cost)
    return best, fits[best][0]
