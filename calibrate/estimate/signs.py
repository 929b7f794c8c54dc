"""Signs of a network's accuracy on a window of frames, which tell it only together."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from calibrate.estimate.outputs import OutputCalibration, probabilities_of

SIGNS = 2
SIGN_WINDOW = 64  # frames; the mean of fewer differs more from that of clean ones
LEAST_SHARE = 0.01  # of frames: a share of 0 or 1 has no finite log-odds
LEAST_PROBABILITY = 1e-4  # of a class among clean frames: one that never occurs there would decide alone


def signs_of(logits: Tensor, calibration: OutputCalibration) -> Tensor:
    """Return the signs of SIGN_WINDOW frames with logits (N, K), (2,) float32, always finite.

    They are the log-odds of the mean confidence, and how far the mean probabilities of the classes are from those of
    clean frames (Kullback-Leibler divergence, nats). A drift that makes a network sure of wrong answers makes it prefer
    some classes. The drift score is no sign: kinds of drift that cost as much have very different ones.
    """
    probabilities = probabilities_of(logits)
    confidence = float(probabilities.max(1).values.mean())
    return torch.tensor([log_odds(confidence), divergence(probabilities.mean(0), calibration.probabilities)])


def log_odds(share: float) -> float:
    """Return the log-odds of a share 0 to 1, in nats, finite."""
    kept = min(max(share, LEAST_SHARE), 1 - LEAST_SHARE)
    return math.log(kept / (1 - kept))


def divergence(found: Tensor, known: Tensor) -> float:
    """Return the Kullback-Leibler divergence of a distribution (K,) from a known one, in nats, finite."""
    return float((found * (found.clamp_min(1e-12) / known.clamp_min(LEAST_PROBABILITY)).log()).sum())
