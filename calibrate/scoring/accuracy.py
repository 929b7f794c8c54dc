"""Estimate a classifier's accuracy from its outputs, without labels. The estimates are too high under drift."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

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
