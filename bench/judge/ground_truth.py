"""Ground truth by labels: whether a candidate is good or bad."""

from __future__ import annotations

WIN_POINTS, COST_POINTS = 2.0, 0.5  # of accuracy: a good candidate wins so much at least, a bad one costs more

BETTER, WORSE, NEUTRAL = "good", "bad", "neutral"


def compare(candidate: float, other: float) -> str:
    """Tell whether a candidate is good, bad or neutral; accuracies in percent."""
    if candidate >= other + WIN_POINTS:
        return BETTER
    return WORSE if candidate < other - COST_POINTS else NEUTRAL
