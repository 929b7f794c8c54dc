"""Latency near swaps and away from them."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np

from bench.material.camera import Answer
from bench.report import percentiles

# On either side of a swap. Loading and proving come 0.1 s before it; in a wider window the one frame that
# a pause may hit would be less than a hundredth of all, and the p99 would not show it.
AROUND_S = 0.2


def around_swaps(answers: list[Answer]) -> dict[str, Any]:
    """`control_ratio`: the same, around the middle between two swaps, where nothing happens."""
    sent, latency = np.array([(a.sent, a.latency) for a in answers]).T
    swaps = np.array([b.sent for a, b in pairwise(answers) if a.homogenizer != b.homogenizer])
    near = _near(sent, swaps)
    middle = _near(sent, (swaps[:-1] + swaps[1:]) / 2)
    return {
        "swaps": len(swaps),
        "around": percentiles(latency[near]),
        "away": percentiles(latency[~near]),
        "p99_ratio": p99_ratio(latency[near], latency[~near]),
        "control_ratio": p99_ratio(latency[middle], latency[~near & ~middle]),
    }


def p99_ratio(these: np.ndarray, those: np.ndarray) -> float | None:
    """None where there are none to compare."""
    if not (len(these) and len(those)):
        return None
    return float(np.percentile(these, 99) / np.percentile(those, 99))


def _near(sent: np.ndarray, moments: np.ndarray) -> np.ndarray:
    near: np.ndarray = (np.abs(sent[:, None] - moments) <= AROUND_S).any(axis=1)
    return near
