"""Compare a window of frames with a sensor's healthy frames, beside the directions in which content moves them."""

from __future__ import annotations

import math
from bisect import bisect
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import NamedTuple

import torch
from torch import Tensor

from calibrate.baseline.frames import FrameStatistics

MIN_SPREAD = 1e-3  # of a channel's statistic over healthy windows: a channel without any would decide alone
LEAST_DISTANCE = 1e-6  # whose logarithm is taken; a window that is exactly as healthy ones has none
MAX_UNSEEN_SHARE = 0.25  # of frames of classes that no healthy frame had: what more of them show is not known
BASELINE_PREFIX = "baseline."  # of the names of its tensors in a file


class SensorState(NamedTuple):
    """What one window of frames says about the camera, and about what it shows.

    drift: of the camera, in standard deviations above healthy frames of like content; 0 on average where nothing
    drifted. content: distance of what is shown from the usual mixture, 1 for the most unusual of 200 usual windows.
    known: whether healthy frames showed content like this; else `drift` says nothing.
    """

    drift: float
    content: float
    known: bool


@dataclass(frozen=True)
class Baseline:
    """What healthy frames' windows of `size` frames look like. D = 2 C statistics, k directions of content.

    centre, spread: (D,) of windows, the spread beside the directions. directions: (k, D), orthonormal.
    content_spread: (k,) of the windows of all kinds of content. content_limit: () of their distance.
    expected: (B, 3) for windows of like content, in rising order: the logarithm of the content's distance, and mean and
    standard deviation of the logarithm of the distance beside it. classes: (K,) how many healthy frames had each class;
    (0,) for a network that is no classifier. size, frames: () of a window, of all.
    """

    centre: Tensor
    directions: Tensor
    spread: Tensor
    content_spread: Tensor
    content_limit: Tensor
    expected: Tensor
    classes: Tensor
    size: Tensor
    frames: Tensor

    def compare(self, frames: FrameStatistics) -> SensorState:
        """Compare one window of `size` frames."""
        content, distance = (float(x) for x in self.distances(frames.window()[None]))
        known = self._unseen_share(frames.labels) <= MAX_UNSEEN_SHARE
        return SensorState(self.excess(content, distance), content / float(self.content_limit), known)

    def distances(self, windows: Tensor) -> tuple[Tensor, Tensor]:
        """Return how far windows (W, D) are along the content's directions, and beside them, (W,) each.

        Both are root mean squares in standard deviations of healthy windows.
        """
        beside = windows - self.centre
        along = beside @ self.directions.T
        beside = beside - along @ self.directions
        return _root_mean_square(along / self.content_spread), _root_mean_square(beside / self.spread)

    def excess(self, content: float, distance: float) -> float:
        """Return how many standard deviations a distance lies above that of healthy windows of like content.

        NaN for distances that are not finite.
        """
        if not (math.isfinite(content) and math.isfinite(distance)):
            return math.nan
        places, levels, spreads = self.expected.T.tolist()
        like, found = (math.log(max(value, LEAST_DISTANCE)) for value in (content, distance))
        level, spread = (_interpolate(like, places, values) for values in (levels, spreads))
        return (found - level) / spread

    def _unseen_share(self, labels: Tensor) -> float:
        """Return the share of frames of classes that no healthy frame had."""
        named = labels[labels >= 0]
        return float((self.classes[named] == 0).float().mean()) if len(named) else 0.0

    def tensors(self) -> dict[str, Tensor]:
        """Return everything by the names under which a file stores it."""
        return {BASELINE_PREFIX + field.name: getattr(self, field.name) for field in fields(self)}

    @classmethod
    def of_tensors(cls, tensors: Mapping[str, Tensor], channels: int, classes: int) -> Baseline | None:
        """Rebuild the baseline of a network with so many channels and classes; None where a file holds none.

        Raises ValueError for tensors that are missing, of another shape (as those of another network), or not finite.
        """
        stored = {
            name.removeprefix(BASELINE_PREFIX): tensor
            for name, tensor in tensors.items()
            if name.startswith(BASELINE_PREFIX)
        }
        if not stored:
            return None
        if stored.keys() != {field.name for field in fields(cls)}:
            raise ValueError("the baseline is not whole")
        baseline = cls(**stored)
        if not all(tensor.is_floating_point() and torch.isfinite(tensor).all() for tensor in stored.values()):
            raise ValueError("the baseline has values that are not finite")
        if not baseline._fits(2 * channels, classes):
            raise ValueError("the baseline has tensors of other shapes or out of range")
        return baseline

    def _fits(self, statistics: int, classes: int) -> bool:
        if self.directions.dim() != 2 or self.expected.dim() != 2:
            return False
        directions = self.directions.shape[0]
        shapes = {"centre": (statistics,), "spread": (statistics,), "directions": (directions, statistics)}
        shapes |= {"content_spread": (directions,), "expected": (len(self.expected), 3), "classes": (classes,)}
        shapes |= dict.fromkeys(("content_limit", "size", "frames"), ())
        if not len(self.expected) or any(getattr(self, name).shape != shape for name, shape in shapes.items()):
            return False
        places, _, spreads = self.expected.T
        positive = (self.spread, self.content_spread, self.content_limit, self.size, self.frames, spreads)
        return bool((places.diff() > 0).all()) and all(bool((tensor > 0).all()) for tensor in positive)


def _interpolate(place: float, places: list[float], values: list[float]) -> float:
    """Return the value at a place, linear between the known places, which rise, and constant beyond them."""
    after = bisect(places, place)
    if after in (0, len(places)):
        return values[min(after, len(values) - 1)]
    share = (place - places[after - 1]) / (places[after] - places[after - 1])
    return values[after - 1] + share * (values[after] - values[after - 1])


def _root_mean_square(values: Tensor) -> Tensor:
    return values.square().mean(-1).sqrt()
