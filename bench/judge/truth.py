"""What labels say of a candidate, and how sure a count makes of a rate."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

LEVEL = 0.05  # of the test, on both sides together: one in 40 of the candidates that change nothing is called bad
CONFIDENT = 1.959964  # standard errors of an interval that holds 95 %

BETTER, WORSE, NEUTRAL = "good", "bad", "neutral"


class Truth(NamedTuple):
    """truth: good, bad or neutral. gained, lost: images that only the candidate, or only the other, names right."""

    truth: str
    gained: int
    lost: int


def compare(candidate: Tensor, other: Tensor) -> Truth:
    """Whether serving a candidate gains or loses accuracy beyond chance; (N,) bool, which images are named right."""
    gained, lost = int((candidate & ~other).sum()), int((other & ~candidate).sum())
    if mcnemar(gained, lost) >= LEVEL:
        return Truth(NEUTRAL, gained, lost)
    return Truth(BETTER if gained > lost else WORSE, gained, lost)


def best(named_right: list[Tensor]) -> Tensor:
    """The one that is right most often."""
    return max(named_right, key=lambda right: float(right.float().mean()))


def mcnemar(gained: int, lost: int) -> float:
    """p of the exact test (McNemar 1947), on both sides: are images that changed as likely to be won as to be lost?"""
    changed = gained + lost
    tail = sum(math.comb(changed, k) for k in range(min(gained, lost) + 1))
    return float(min(1.0, 2 * tail / 2**changed))


def wilson(count: int, of: int) -> tuple[float, float]:
    """The interval (Wilson 1927) that holds a rate with 95 %, which was seen `count` times of so many."""
    if of == 0:
        return 0.0, 1.0
    rate, z = count / of, CONFIDENT**2 / of
    middle = (rate + z / 2) / (1 + z)
    reach = math.sqrt(z * rate * (1 - rate) + z**2 / 4) / (1 + z)
    return max(0.0, middle - reach), min(1.0, middle + reach)


def to_text(right: Tensor) -> str:
    """(N,) bool as zeros and ones."""
    return "".join(map(str, right.int().tolist()))


def from_text(text: str) -> Tensor:
    return torch.tensor([digit == "1" for digit in text])
