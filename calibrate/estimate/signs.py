"""Signs of a network's accuracy on a window of frames, which tell it only together."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from calibrate.estimate.outputs import OutputCalibration, shares_of

SIGNS = 5
SIGN_WINDOW = 64  # frames; with another number the same frames have other signs
LEAST_SHARE = 0.01  # of frames: a share of 0 or 1 has no finite log-odds
SCORES = (0.05, 60.0)  # drift scores outside of these tell no more; NaN counts as the highest


def signs_of(logits: Tensor, score: float, calibration: OutputCalibration) -> Tensor:
    """Return the signs of SIGN_WINDOW frames, (5,) float32.

    They are: the log-odds of the calibrated confidence and of the share below the entropy threshold; the logarithm of
    the median layer's drift score; how far the mean probabilities and the shares of the predicted classes are from
    those of clean frames (total variation, 0 to 1). A drift that makes a network sure of wrong answers makes it prefer
    some classes, and its features differ.

    logits: (N, K). score: drift score of the median layer.
    """
    proxies = calibration.proxies(logits)
    classes = logits.shape[1]
    return torch.tensor(
        [
            log_odds(proxies["calibrated_confidence"]),
            log_odds(proxies["atc_entropy"]),
            math.log(min(max(score, SCORES[0]), SCORES[1]) if math.isfinite(score) else SCORES[1]),
            total_variation(logits.softmax(1).mean(0), calibration.probabilities),
            total_variation(shares_of(logits.argmax(1), classes), calibration.shares),
        ]
    )


def log_odds(share: float) -> float:
    """Return the log-odds of a share 0 to 1, in nats, finite."""
    kept = min(max(share, LEAST_SHARE), 1 - LEAST_SHARE)
    return math.log(kept / (1 - kept))


def total_variation(first: Tensor, second: Tensor) -> float:
    """Return the largest difference in probability that two distributions (K,) give to any event, 0 to 1."""
    return float((first - second).abs().sum() / 2)
