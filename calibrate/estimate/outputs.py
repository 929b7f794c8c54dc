"""Estimate a classifier's accuracy from its outputs alone, calibrated on clean frames whose classes are known.

Each of these estimates is too high behind a drift that makes the network sure of wrong answers, and many drifts do.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import torch
from torch import Tensor
from torch.nn.functional import nll_loss

LEAST = 1e-12  # probability: 0 has no logarithm
TEMPERATURES = torch.logspace(math.log10(0.3), 1, 80)  # that are tried: a network that is far off cannot be mended so


@dataclass(frozen=True)
class OutputCalibration:
    """What a network's outputs look like on clean frames of known classes.

    accuracy: share of right answers. confidence: mean largest probability.
    temperature: what logits are divided by to make the right classes most likely (Guo et al. 2017, "On calibration of
    modern neural networks", section 4.2).
    least_confidence, most_entropy: thresholds; the share of clean frames that are surer is the accuracy (Garg et al.
    2022, "Leveraging unlabeled data to predict out-of-distribution performance", equation 2). In nats.
    probabilities: mean of the predicted probabilities, (K,).
    """

    accuracy: Tensor
    confidence: Tensor
    temperature: Tensor
    least_confidence: Tensor
    most_entropy: Tensor
    probabilities: Tensor

    @classmethod
    def of(cls, logits: Tensor, labels: Tensor) -> OutputCalibration:
        """Measure logits (N, K) of clean frames with the classes `labels`, (N,) int64."""
        probabilities = probabilities_of(logits)
        confidence, named = probabilities.max(1)
        accuracy = (named == labels).float().mean()
        return cls(
            accuracy,
            confidence.mean(),
            min(TEMPERATURES, key=lambda temperature: _surprise(probabilities_of(logits / temperature), labels)),
            confidence.quantile(1 - accuracy),
            entropy(probabilities).quantile(accuracy),
            probabilities.mean(0),
        )

    def proxies(self, logits: Tensor) -> dict[str, float]:
        """Estimate the accuracy on frames with logits (N, K), 0 to 1 each.

        calibrated_confidence: mean confidence at the temperature. atc_confidence, atc_entropy: share of frames that are
        surer than the threshold. difference_of_confidences: accuracy on clean frames, less what the mean confidence
        lost (Guillory et al. 2021, "Predicting with confidence on unseen distributions").
        """
        probabilities = probabilities_of(logits)
        confidence = probabilities.max(1).values
        difference = self.accuracy + confidence.mean() - self.confidence
        found = {
            "calibrated_confidence": probabilities_of(logits / self.temperature).max(1).values.mean(),
            "atc_confidence": (confidence >= self.least_confidence).float().mean(),
            "atc_entropy": (entropy(probabilities) <= self.most_entropy).float().mean(),
            "difference_of_confidences": difference.clamp(0, 1),
        }
        return {name: float(value) for name, value in found.items()}

    def tensors(self) -> dict[str, Tensor]:
        """Return all fields by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


def probabilities_of(logits: Tensor) -> Tensor:
    """Return the probabilities (N, K) of logits. A frame with an output that is not finite gets the same for all."""
    probabilities = logits.float().softmax(1)
    usable = torch.isfinite(probabilities).all(1, keepdim=True)  # -inf rules a class out, and leaves the others
    return torch.where(usable, probabilities, 1 / logits.shape[1])


def _surprise(probabilities: Tensor, labels: Tensor) -> float:
    """Return the mean negative logarithm of the right classes' probabilities, nats."""
    return float(nll_loss(probabilities.clamp_min(LEAST).log(), labels))


def entropy(probabilities: Tensor) -> Tensor:
    """Return the entropy of each row of (N, K), (N,) in nats."""
    return torch.special.entr(probabilities).sum(1)


def shares_of(labels: Tensor, classes: int) -> Tensor:
    """Return the share of each class in labels (N,) int64, (K,)."""
    return torch.bincount(labels, minlength=classes).float() / len(labels)
