"""How far frames are from the data a network was trained on, and when that is an alarm.

The score asks, for every channel at every BatchNorm input, how many standard errors the frames' mean and
variance lie from the shipped ones. The standard error is taken between images, since pixels of one image are
not independent, and is widened by what running statistics themselves are worth.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from calibrate.features.statistics import VARIANCE_FLOOR, FeatureStatistics, ImageMoments, log_variance_error

TOLERANCE = 0.1  # of a channel's standard deviation: running statistics are moving averages under augmentation
# where the frames behind the reference were like these; clean windows of 64 then reach 1.0 (CIFAR-10) and 1.3 (GTSRB)
LIKE_FRAMES_TOLERANCE = 0.03
MIN_IMAGES = 8  # fewer give no usable spread between images


@dataclass(frozen=True)
class DriftScore:
    """score: rms over layers of the standardised distance, about 1 on clean data. layers: (L,) the same by layer."""

    score: float
    layers: tuple[float, ...]


def drift_score(
    moments: ImageMoments, reference: FeatureStatistics, tolerance: float = TOLERANCE, measured_on: float = math.inf
) -> DriftScore:
    """The standardised distance of images from the reference, whose means are off by `tolerance` standard deviations.

    measured_on: how many images the reference is of; their sampling error is like that of these images.
    Raises ValueError below MIN_IMAGES images.
    """
    if len(moments) < MIN_IMAGES:
        raise ValueError(f"a drift score needs at least {MIN_IMAGES} images, got {len(moments)}")
    squares = []
    for first, second, mean, variance in zip(
        moments.first, moments.second, reference.means, reference.variances, strict=True
    ):
        variance = variance.clamp_min(VARIANCE_FLOOR)
        sampling = 1 + len(moments) / measured_on
        mean_square = _mean_square(first, mean, variance, sampling, tolerance)
        squares.append((mean_square + _variance_square(first, second, variance, sampling, tolerance)) / 2)
    layers = torch.stack(squares)
    return DriftScore(float(layers.mean().sqrt()), tuple(layers.sqrt().tolist()))


def _mean_square(first: Tensor, mean: Tensor, variance: Tensor, sampling: float, tolerance: float) -> Tensor:
    """Mean over channels of the squared standardised distance of the mean."""
    error = sampling * first.var(0, unbiased=True) / len(first) + tolerance**2 * variance
    return ((first.mean(0) - mean).square() / error).mean()


def _variance_square(first: Tensor, second: Tensor, variance: Tensor, sampling: float, tolerance: float) -> Tensor:
    """The same for the logarithm of the variance, its error by the delta method."""
    observed_mean = first.mean(0)
    observed = (second.mean(0) - observed_mean.square()).clamp_min(VARIANCE_FLOOR)
    error = sampling * log_variance_error(first, second) + (2 * tolerance) ** 2
    return ((observed / variance).log().square() / error).mean()


class DriftDetector:
    """A sequential test with hysteresis: evidence is the time (s) the score has spent above its threshold.

    It grows while the score is above `threshold`, falls while it is below, alarms on reaching `hold` and
    clears at zero: a CUSUM of the sign, which no single wild score can trip.
    """

    def __init__(self, threshold: float, hold: float):
        self.threshold = threshold
        self.hold = hold
        self.evidence = 0.0
        self.alarm = False
        self._last: float | None = None

    def observe(self, score: float, now: float) -> bool:
        """Take in a score at time `now` (s, monotonic) and say whether there is an alarm."""
        elapsed = 0.0 if self._last is None else min(max(now - self._last, 0.0), self.hold / 2)
        self._last = now
        above = not score <= self.threshold  # NaN is
        self.evidence = min(max(self.evidence + (elapsed if above else -elapsed), 0.0), self.hold)
        self.alarm = (above and self.evidence >= self.hold) or (self.alarm and self.evidence > 0)
        return self.alarm

    def reset(self) -> None:
        """Forget: what produced the evidence is no longer in place."""
        self.evidence, self.alarm, self._last = 0.0, False, None
