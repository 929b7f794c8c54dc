"""What a classifier's outputs say about its accuracy without labels. Estimates, and optimistic ones under drift."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

MIN_ALIKE = 8  # frames; fewer give no usable spread
CERTAIN = math.log(99)  # log odds of 99 %: above it they follow the contrast of a frame, and no answer changes


@dataclass(frozen=True)
class AccuracyProxy:
    """confidence: mean largest probability. certainty: 1 - mean entropy / log K. top_share: share of frames that
    the commonest predicted class takes. confidence_error: standard error of `confidence`. classes: the effective
    number of predicted classes, the exponential of their entropy, of `known` ones."""

    confidence: float
    certainty: float
    top_share: float
    confidence_error: float
    classes: float
    known: int


@dataclass(frozen=True)
class Answers:
    """What a classifier says of each frame: labels (N,) and the log odds (N,) it gives them, CERTAIN at most."""

    labels: Tensor
    log_odds: Tensor

    def surer_than(self, other: Answers) -> float:
        """By how many standard errors the odds of the same frames are higher, where both give the same label.

        Where labels differ odds cannot be compared: a network is often sure of what a drift makes it see. 0 where
        there are too few such frames to tell.
        """
        gains = (self.log_odds - other.log_odds)[(self.labels == other.labels) & torch.isfinite(other.log_odds)]
        if len(gains) < MIN_ALIKE:
            return 0.0
        return float(gains.mean() / (gains.std() / math.sqrt(len(gains))).clamp_min(1e-9))

    def gain_over(self, other: Answers) -> float:
        """By how much the odds of the same frames are higher on average, nats, whatever either calls them.

        Infinite where the other gives too few frames any odds.
        """
        gains = (self.log_odds - other.log_odds)[torch.isfinite(other.log_odds)]
        return float(gains.mean()) if len(gains) >= MIN_ALIKE else math.inf


def answers(outputs: Tensor) -> Answers | None:
    """From logits (N, K); None where the outputs are no classifier's."""
    if not _is_classifiers(outputs):
        return None
    largest, labels = outputs.float().log_softmax(1).max(1)
    return Answers(labels, (largest - (-largest.clamp(max=-1e-6).expm1()).log()).clamp(max=CERTAIN))


def accuracy_proxy(outputs: Tensor) -> AccuracyProxy | None:
    """Proxies from logits (N, K); None where the outputs are no classifier's."""
    if not _is_classifiers(outputs):
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
        classes=_effective(counts),
        known=outputs.shape[1],
    )


def _effective(counts: Tensor) -> float:
    """Hill's number of order 1: as many equally common classes have the same entropy."""
    shares = counts[counts > 0] / counts.sum()
    return math.exp(-float((shares * shares.log()).sum()))


def _is_classifiers(outputs: Tensor) -> bool:
    return outputs.dim() == 2 and outputs.shape[1] >= 2 and len(outputs) >= 2
