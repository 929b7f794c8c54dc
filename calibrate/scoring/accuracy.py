"""Estimate a classifier's accuracy from its outputs, without labels. The estimates are too high under drift."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

MIN_PAIRED_FRAMES = 8  # frames in a comparison of two predictions; the spread of fewer is unknown
# In nats, for a probability of 99 %. Higher log odds depend on the contrast of a frame, and its label does not change.
MAX_LOG_ODDS = math.log(99)
MIN_PROBABILITY = 1e-12  # of a class; less has no logarithm in float32 that differs from that of 0

ScoredOutput = Literal["logits", "probabilities", "none"]  # what a network's output is; none: no classifier's


@dataclass(frozen=True)
class AccuracyProxy:
    """Estimates of a classifier's accuracy on N frames.

    confidence: mean largest probability, 1/K to 1 (average confidence, Garg et al. 2022, "Leveraging unlabeled data to
    predict out-of-distribution performance").
    certainty: 1 - mean entropy / log K, 0 to 1.
    top_share: share of the frames in the most frequent predicted class, 1/K to 1.
    confidence_error: standard error of `confidence`.
    classes: effective number of predicted classes, the exponential of the entropy of their shares, 1 to K.
    known: K, the number of classes of the network.
    """

    confidence: float
    certainty: float
    top_share: float
    confidence_error: float
    classes: float
    known: int


@dataclass(frozen=True)
class Predictions:
    """What a classifier predicts for N frames.

    labels: (N,) the most probable class. log_odds: (N,) of this class in nats, MAX_LOG_ODDS at most.
    """

    labels: Tensor
    log_odds: Tensor

    @staticmethod
    def of(outputs: Tensor) -> Predictions | None:
        """Read predictions from logits (N, K); None if the outputs are not those of a classifier (see `is_logits`)."""
        if not is_logits(outputs):
            return None
        largest, labels = outputs.float().log_softmax(1).max(1)
        log_odds = largest - (-largest.clamp(max=-1e-6).expm1()).log()
        return Predictions(labels, log_odds.clamp(max=MAX_LOG_ODDS))

    def standardised_gain_over(self, other: Predictions) -> float:
        """Return the mean gain in log odds, in standard errors, on the frames that both give the same label.

        Both must be of the same frames. Frames with different labels do not count: under drift a network is often
        sure of a wrong label. Returns 0 for fewer than MIN_PAIRED_FRAMES such frames.
        """
        gains = (self.log_odds - other.log_odds)[(self.labels == other.labels) & torch.isfinite(other.log_odds)]
        if len(gains) < MIN_PAIRED_FRAMES:
            return 0.0
        return float(gains.mean() / (gains.std() / math.sqrt(len(gains))).clamp_min(1e-9))

    def mean_gain_over(self, other: Predictions) -> float:
        """Return the mean gain in log odds of the same frames in nats, whatever the labels.

        Returns infinity if the other has finite odds for fewer than MIN_PAIRED_FRAMES frames.
        """
        gains = (self.log_odds - other.log_odds)[torch.isfinite(other.log_odds)]
        return float(gains.mean()) if len(gains) >= MIN_PAIRED_FRAMES else math.inf


def logits_of(outputs: Tensor, kind: ScoredOutput) -> Tensor | None:
    """Return the logits (N, K) behind the outputs of a classifier; None for any other network.

    kind: what the outputs are. Logarithms of probabilities are logits.
    """
    if kind == "none" or not is_logits(outputs):
        return None
    return outputs.float().clamp_min(MIN_PROBABILITY).log() if kind == "probabilities" else outputs


def accuracy_proxy(outputs: Tensor) -> AccuracyProxy | None:
    """Estimate accuracy from logits (N, K); None if the outputs are not those of a classifier (see `is_logits`)."""
    if not is_logits(outputs):
        return None
    probabilities = outputs.float().softmax(1)
    largest, label = probabilities.max(1)
    entropy = -(probabilities * probabilities.clamp_min(1e-12).log()).sum(1).mean()
    counts = torch.bincount(label, minlength=outputs.shape[1])
    return AccuracyProxy(
        confidence=float(largest.mean()),
        certainty=1 - float(entropy) / math.log(outputs.shape[1]),
        top_share=float(counts.max()) / len(outputs),
        confidence_error=float(largest.std()) / math.sqrt(len(outputs)),
        classes=_effective_classes(counts),
        known=outputs.shape[1],
    )


def is_logits(outputs: Tensor) -> bool:
    """Test whether outputs can be logits (N, K) with at least 2 frames and 2 classes."""
    return outputs.dim() == 2 and outputs.shape[1] >= 2 and len(outputs) >= 2


def _effective_classes(counts: Tensor) -> float:
    """Return the number of equally frequent classes with the same entropy (Hill 1973, number of order 1)."""
    shares = counts[counts > 0] / counts.sum()
    return math.exp(-float((shares * shares.log()).sum()))
