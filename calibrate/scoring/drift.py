"""Measure how far frames are from a network's training data, and decide when this is an alarm.

For every channel at every BatchNorm input, the score counts the standard errors between the frames' mean and variance
and the shipped ones. The standard error is taken between images, since the pixels of one image are not independent,
and is widened by the error of the running statistics themselves.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from calibrate.features.statistics import VARIANCE_FLOOR, FeatureStatistics, ImageMoments, log_variance_error

# Tolerances are errors of the reference means, in standard deviations of the channel.
SHIPPED_TOLERANCE = 0.1  # for shipped statistics: they are moving averages over augmented frames
# For a reference of frames with the same augmentation as the scored ones. Clean windows of 64 frames then score up to
# 1.0 (CIFAR-10) and 1.3 (GTSRB).
MATCHED_TOLERANCE = 0.03
MIN_SCORE_IMAGES = 8  # the spread between fewer images is unknown


@dataclass(frozen=True)
class DriftScore:
    """Standardised distance from the reference, about 1 on clean frames; it has no unit.

    score: root mean square over layers. layers: L distances, one for each layer.
    """

    score: float
    layers: tuple[float, ...]


def drift_score(
    moments: ImageMoments,
    reference: FeatureStatistics,
    tolerance: float = SHIPPED_TOLERANCE,
    reference_images: float = math.inf,
) -> DriftScore:
    """Score N images against reference statistics, layer by layer.

    tolerance: error of the reference means, in standard deviations of the channel.
    reference_images: number of images behind the reference. Its sampling error counts like that of the scored images.
    The score is NaN for moments that are not finite. Raises ValueError for fewer than MIN_SCORE_IMAGES images, and for
    moments with another number of layers than the reference.
    """
    if len(moments) < MIN_SCORE_IMAGES:
        raise ValueError(f"a drift score needs at least {MIN_SCORE_IMAGES} images, got {len(moments)}")
    sampling = 1 + len(moments) / reference_images
    squares = []  # of the standardised distance of each layer, averaged over channels
    for first, second, mean, variance in zip(
        moments.first, moments.second, reference.means, reference.variances, strict=True
    ):
        variance = variance.clamp_min(VARIANCE_FLOOR)
        found_mean = first.mean(0)
        found_variance = (second.mean(0) - found_mean.square()).clamp_min(VARIANCE_FLOOR)
        mean_error = sampling * first.var(0, unbiased=True) / len(first) + tolerance**2 * variance
        log_variance_errors = sampling * log_variance_error(first, second) + (2 * tolerance) ** 2
        mean_square = ((found_mean - mean).square() / mean_error).mean()
        log_variance_square = ((found_variance / variance).log().square() / log_variance_errors).mean()
        squares.append((mean_square + log_variance_square) / 2)
    layers = torch.stack(squares)
    return DriftScore(float(layers.mean().sqrt()), tuple(layers.sqrt().tolist()))


class DriftDetector:
    """A sequential test with hysteresis on the drift score.

    Its evidence is a time in seconds. It grows while the score is above `threshold` and falls while it is below. The
    alarm starts when the evidence reaches `hold` seconds and ends at zero. This is a CUSUM (Page 1954) of the sign of
    score - threshold, so that no single extreme score causes an alarm.
    """

    def __init__(self, threshold: float, hold: float):
        self.threshold = threshold
        self.hold = hold
        self.evidence = 0.0
        self.alarm = False
        self._last_time: float | None = None

    def observe(self, score: float, now: float) -> bool:
        """Take in a score at monotonic time `now` in seconds; return whether there is an alarm. NaN counts as above."""
        elapsed = 0.0 if self._last_time is None else min(max(now - self._last_time, 0.0), self.hold / 2)
        self._last_time = now
        above = not score <= self.threshold  # also true for NaN
        self.evidence = min(max(self.evidence + (elapsed if above else -elapsed), 0.0), self.hold)
        self.alarm = (above and self.evidence >= self.hold) or (self.alarm and self.evidence > 0)
        return self.alarm

    def reset(self) -> None:
        """Start again without evidence, because another homogenizer serves."""
        self.evidence, self.alarm, self._last_time = 0.0, False, None
