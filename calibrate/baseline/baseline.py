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
from calibrate.baseline.scenes import MIN_CLASS_FRAMES
from calibrate.baseline.variety import different_frames

MIN_SPREAD = 1e-3  # of a channel's statistic over healthy windows: a channel without any would decide alone
LEAST_DISTANCE = 1e-6  # whose logarithm is taken; a window that is exactly as healthy ones has none
# Of a window's frames, of classes with fewer healthy frames than MIN_CLASS_FRAMES: what windows with more of them show
# is not known. Healthy windows may have more, as with a thousand classes.
MAX_UNSEEN_SHARE = 0.25
FULL_VARIETY = (
    0.5  # share of different frames from which on a window counts in full; of 64 that differ 57 may be counted
)
BASELINE_PREFIX = "baseline."  # of the names of its tensors in a file


class SensorState(NamedTuple):
    """What one window of frames says about the camera, and about what it shows.

    drift: of the camera, in standard deviations above healthy frames of like content; 0 on average where nothing
    drifted. content: distance of what is shown from the usual mixture, 1 for the most unusual of 200 usual windows.
    known: whether healthy frames showed content like this; else `drift` says nothing. weight: of the window as
    evidence, 0 to 1: windows of a still scene show the same again and again.
    """

    drift: float
    content: float
    known: bool
    weight: float = 1.0


@dataclass(frozen=True)
class Baseline:
    """What healthy frames' windows of `size` frames look like. D = 2 C statistics, k directions of content.

    limits: (4, C) between which statistics of single frames count; variance: (C,) of their first moments.
    centre, spread: (D,) of windows, the spread beside the directions. directions: (k, D), orthonormal.
    content_spread: (k,) of the windows of all kinds of content. content_limit: () of their distance.
    expected: (B, 3) for windows of like content, in rising order: the logarithm of the content's distance, and mean and
    standard deviation of the logarithm of the distance beside it.
    alike: (A, 3) for windows of frames much alike, in rising order: the logarithm of how many are different, and mean
    and standard deviation of what `expected` leaves over.
    classes: (K,) how many healthy frames had each class; (0,) for a network that is no classifier.
    unseen_limit: () share of a window's frames of classes that were hardly seen, up to which its content is known.
    size, frames: () of a window, of all.
    """

    limits: Tensor
    variance: Tensor
    centre: Tensor
    directions: Tensor
    spread: Tensor
    content_spread: Tensor
    content_limit: Tensor
    expected: Tensor
    alike: Tensor
    classes: Tensor
    unseen_limit: Tensor
    size: Tensor
    frames: Tensor

    def compare(self, frames: FrameStatistics) -> SensorState:
        """Compare one window of `size` frames in the order of time."""
        known = float(self.unseen(frames.labels).float().mean()) <= float(self.unseen_limit)
        if not (torch.isfinite(frames.first).all() and torch.isfinite(frames.second).all()):
            return SensorState(math.nan, math.nan, known)
        kept = frames.clamp(self.limits)
        content, distance = (float(x) for x in self.distances(kept.window()[None]))
        different = float(self.different(frames.first))
        # Squared, since the windows of a slow scene are alike, too.
        weight = min(1.0, different / (FULL_VARIETY * float(self.size))) ** 2
        drift = self.drift(content, distance, different)
        return SensorState(drift, content / float(self.content_limit), known, weight)

    def different(self, first: Tensor) -> Tensor:
        """Return how many frames of windows (..., n, C) are different, as different_frames does."""
        return different_frames(first, self.limits[:2].mean(0), self.variance)

    def distances(self, windows: Tensor) -> tuple[Tensor, Tensor]:
        """Return how far windows (W, D) are along the content's directions, and beside them, (W,) each.

        Both are root mean squares in standard deviations of healthy windows.
        """
        beside = windows - self.centre
        along = beside @ self.directions.T
        beside = beside - along @ self.directions
        return _root_mean_square(along / self.content_spread), _root_mean_square(beside / self.spread)

    def drift(self, content: float, distance: float, different: float) -> float:
        """Return how many standard deviations a distance lies above that of healthy windows with as many different
        frames of like content. NaN for distances that are not finite.
        """
        return _standardise(self.excess(content, distance), math.log(different), self.alike)

    def excess(self, content: float, distance: float) -> float:
        """Return the same for windows whose frames are all different."""
        if not (math.isfinite(content) and math.isfinite(distance)):
            return math.nan
        like, found = (math.log(max(value, LEAST_DISTANCE)) for value in (content, distance))
        return _standardise(found, like, self.expected)

    def unseen(self, labels: Tensor) -> Tensor:
        """Return which frames certainly show a class that hardly any healthy frame had. labels: of any shape."""
        if not len(self.classes):
            return torch.zeros_like(labels, dtype=torch.bool)
        return (labels >= 0) & (self.classes[labels.clamp_min(0)] < MIN_CLASS_FRAMES)

    def tensors(self) -> dict[str, Tensor]:
        """Return everything by the names under which a file stores it."""
        return {BASELINE_PREFIX + field.name: getattr(self, field.name) for field in fields(self)}

    @classmethod
    def of_tensors(cls, tensors: Mapping[str, Tensor], channels: int, classes: int) -> Baseline | None:
        """Rebuild the baseline of a network with so many channels and classes; None where a file holds none.

        None also for one of an earlier format, which has no `unseen_limit`.
        Raises ValueError for tensors that are missing, of another shape (as those of another network), or not finite.
        """
        stored = {
            name.removeprefix(BASELINE_PREFIX): tensor
            for name, tensor in tensors.items()
            if name.startswith(BASELINE_PREFIX)
        }
        if not stored or "unseen_limit" not in stored:
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
        directions = self.directions.shape[:1]
        shapes = {"centre": (statistics,), "spread": (statistics,), "directions": (*directions, statistics)}
        shapes |= {"limits": (4, statistics // 2), "variance": (statistics // 2,)}
        shapes |= {"content_spread": directions, "classes": (classes,)}
        shapes |= dict.fromkeys(("content_limit", "unseen_limit", "size", "frames"), ())
        if any(getattr(self, name).shape != shape for name, shape in shapes.items()):
            return False
        positive = (
            self.unseen_limit,
            self.variance,
            self.spread,
            self.content_spread,
            self.content_limit,
            self.size,
            self.frames,
        )
        tables = is_table(self.expected) and is_table(self.alike)
        return tables and all(bool((tensor > 0).all()) for tensor in positive)


def is_table(table: Tensor) -> bool:
    """Return whether these are rows of a place, a level and a spread, in rising order of the places."""
    if table.dim() != 2 or table.shape[1] != 3 or not len(table) or not torch.isfinite(table).all():
        return False
    places, _, spreads = table.T
    return bool((places.diff() > 0).all() and (spreads > 0).all())


def _standardise(value: float, place: float, table: Tensor) -> float:
    """Return how many spreads a value lies above the level of a table (rows of place, level, spread) at a place."""
    places, levels, spreads = table.T.tolist()
    level, spread = (_interpolate(place, places, values) for values in (levels, spreads))
    return (value - level) / spread


def _interpolate(place: float, places: list[float], values: list[float]) -> float:
    """Return the value at a place, linear between the known places, which rise, and constant beyond them."""
    after = bisect(places, place)
    if after in (0, len(places)):
        return values[min(after, len(values) - 1)]
    share = (place - places[after - 1]) / (places[after] - places[after - 1])
    return values[after - 1] + share * (values[after] - values[after - 1])


def _root_mean_square(values: Tensor) -> Tensor:
    return values.square().mean(-1).sqrt()
