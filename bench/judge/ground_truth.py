"""Ground truth by labels: whether a candidate is good or bad, and the confidence interval of a rate."""

from __future__ import annotations

import math

WIN_POINTS, COST_POINTS = 2.0, 0.5  # of accuracy: a good candidate wins so much at least, a bad one costs more
Z_95 = 1.959964  # standard errors of a 95 % interval

BETTER, WORSE, NEUTRAL = "good", "bad", "neutral"


def compare(candidate: float, other: float) -> str:
    """Tell whether a candidate is good, bad or neutral; accuracies in percent."""
    if candidate >= other + WIN_POINTS:
        return BETTER
    return WORSE if candidate < other - COST_POINTS else NEUTRAL


def wilson(count: int, of: int) -> tuple[float, float]:
    """Return the 95 % interval (Wilson 1927) of a rate that was observed `count` times of `of`."""
    if of == 0:
        return 0.0, 1.0
    rate, z = count / of, Z_95**2 / of
    middle = (rate + z / 2) / (1 + z)
    reach = math.sqrt(z * rate * (1 - rate) + z**2 / 4) / (1 + z)
    return max(0.0, middle - reach), min(1.0, middle + reach)
