"""Ground truth by labels: whether a candidate is good or bad, and the confidence interval of a rate."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

LEVEL = 0.05  # of the two-sided test: one in 40 candidates that change nothing is called bad
Z_95 = 1.959964  # standard errors of a 95 % interval

BETTER, WORSE, NEUTRAL = "good", "bad", "neutral"


class GroundTruth(NamedTuple):
    """truth: good, bad or neutral. gained, lost: images that only the candidate, or only the other, names right."""

    truth: str
    gained: int
    lost: int


def compare(candidate: Tensor, other: Tensor) -> GroundTruth:
    """Tell whether the candidate gains or loses accuracy beyond chance; (N,) bool, which images are named right."""
    gained, lost = int((candidate & ~other).sum()), int((other & ~candidate).sum())
    if mcnemar(gained, lost) >= LEVEL:
        return GroundTruth(NEUTRAL, gained, lost)
    return GroundTruth(BETTER if gained > lost else WORSE, gained, lost)


def best(named_right: Sequence[Tensor]) -> Tensor:
    """Return the most accurate of several, each (N,) bool."""
    return max(named_right, key=lambda right: float(right.float().mean()))


def mcnemar(gained: int, lost: int) -> float:
    """Return the two-sided p of the exact test (McNemar 1947) that changed images are gained as often as lost."""
    changed = gained + lost
    tail = sum(math.comb(changed, k) for k in range(min(gained, lost) + 1))
    return float(min(1.0, 2 * tail / 2**changed))


def wilson(count: int, of: int) -> tuple[float, float]:
    """Return the 95 % interval (Wilson 1927) of a rate that was observed `count` times of `of`."""
    if of == 0:
        return 0.0, 1.0
    rate, z = count / of, Z_95**2 / of
    middle = (rate + z / 2) / (1 + z)
    reach = math.sqrt(z * rate * (1 - rate) + z**2 / 4) / (1 + z)
    return max(0.0, middle - reach), min(1.0, middle + reach)


def to_text(right: Tensor) -> str:
    """Write (N,) bool as zeros and ones."""
    return "".join(map(str, right.int().tolist()))


def from_text(text: str) -> Tensor:
    """Read (N,) bool from zeros and ones."""
    return torch.tensor([digit == "1" for digit in text])
