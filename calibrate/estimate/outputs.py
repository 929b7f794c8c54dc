"""Estimate a classifier's accuracy from its outputs alone, calibrated on clean frames whose classes are known.

Each of these estimates is too high behind a drift that makes the network sure of wrong answers, and many drifts do.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

TEMPERATURES = torch.logspace(math.log10(0.3), 1, 80)  # that are tried: a network that is far off cannot be mended so


@dataclass(frozen=True)
class OutputCalibration:
    """What a network's outputs look like on clean frames of known classes.

    accuracy: share of right answers. confidence: mean largest probability.
    temperature: what logits are divided by to make the right classes most likely (Guo et al. 2017, "On calibration of
    modern neural networks", section 4.2).
    least_confidence, most_entropy: thresholds; the share of clean frames that are surer is the accuracy (Garg et al.
    2022, "Leveraging unlabeled data to predict out-of-distribution performance", equation 2). In nats.
    probabilities: mean of the predicted probabilities, (K,). shares: of the predicted classes, (K,).
    """

    accuracy: Tensor
    confidence: Tensor
    temperature: Tensor
    least_confidence: Tensor
    most_entropy: Tensor
    probabilities: Tensor
    shares: Tensor

    @classmethod
    def of(cls, logits: Tensor, labels: Tensor) -> OutputCalibration:
        """Measure logits (N, K) of clean frames with the classes `labels`, (N,) int64."""
        probabilities = logits.softmax(1)
        confidence, named = probabilities.max(1)
        accuracy = (named == labels).float().mean()
        return cls(
            accuracy,
            confidence.mean(),
            min(TEMPERATURES, key=lambda temperature: float(cross_entropy(logits / temperature, labels))),
            confidence.quantile(1 - accuracy),
            entropy(probabilities).quantile(accuracy),
            probabilities.mean(0),
            shares_of(named, logits.shape[1]),
        )

    def proxies(self, logits: Tensor) -> dict[str, float]:
        """Estimate the accuracy on frames with logits (N, K), 0 to 1 each.

        calibrated_confidence: mean confidence at the temperature. atc_confidence, atc_entropy: share of frames that are
        surer than the threshold. difference_of_confidences: accuracy on clean frames, less what the mean confidence
        lost (Guillory et al. 2021, "Predicting with confidence on unseen distributions").
        """
        probabilities = logits.softmax(1)
        confidence = probabilities.max(1).values
        difference = self.accuracy + confidence.mean() - self.confidence
        found = {
            "calibrated_confidence": (logits / self.temperature).softmax(1).max(1).values.mean(),
            "atc_confidence": (confidence >= self.least_confidence).float().mean(),
            "atc_entropy": (entropy(probabilities) <= self.most_entropy).float().mean(),
            "difference_of_confidences": difference.clamp(0, 1),
        }
        return {name: float(value) for name, value in found.items()}

    def tensors(self) -> dict[str, Tensor]:
        """Return all fields by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


def entropy(probabilities: Tensor) -> Tensor:
    """Return the entropy of each row of (N, K), (N,) in nats."""
    return torch.special.entr(probabilities).sum(1)


def shares_of(labels: Tensor, classes: int) -> Tensor:
    """Return the share of each class in labels (N,) int64, (K,)."""
    return torch.bincount(labels, minlength=classes).float() / len(labels)
