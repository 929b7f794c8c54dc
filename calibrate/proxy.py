"""What a classifier's outputs say about its accuracy without labels. Estimates, and optimistic ones under drift."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class AccuracyProxy:
    """confidence: mean largest probability. certainty: 1 - mean entropy / log K. top_share: share of frames that
    the commonest predicted class takes. confidence_error: standard error of `confidence`."""

    confidence: float
    certainty: float
    top_share: float
    confidence_error: float


def accuracy_proxy(outputs: Tensor) -> AccuracyProxy | None:
    """Proxies from logits (N, K); None where the outputs are no classifier's."""
    if outputs.dim() != 2 or outputs.shape[1] < 2 or len(outputs) < 2:
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
    )
