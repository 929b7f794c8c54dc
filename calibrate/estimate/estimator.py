"""Estimate accuracy from what it was on simulated drifts that showed the same signs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from calibrate.estimate.outputs import OutputCalibration
from calibrate.estimate.signs import SIGNS
from calibrate.scoring.interval import Z_90, wilson

NEIGHBOURS = 20  # examples that an estimate is the mean of
# Examples whose errors give the interval. They are more than those of the mean, since a quantile needs more.
NEIGHBOURS_OF_INTERVAL = 60
COVERAGE = 0.9  # of the interval
LEAST_SPREAD = 0.005  # standard deviation of an estimate: none is surer
LEAST_WEIGHT = 2.0  # frames of known class that an estimate is worth at least
SOFTENING = 0.05  # squared distance that is added to each, so that no example decides alone
PREFIX = "estimate."  # of the names of its tensors in a file


class Estimate(NamedTuple):
    """An accuracy, 0 to 1, and the interval that holds the true one in COVERAGE of all cases."""

    value: float
    lower: float
    upper: float

    @classmethod
    def around(cls, value: float, half_width: float) -> Estimate:
        """Return the estimate with an interval of this half-width, cut at 0 and 1."""
        return cls(value, max(0.0, value - half_width), min(1.0, value + half_width))

    def with_labels(self, right: int, wrong: int) -> Estimate:
        """Return the estimate after so many frames of known class: Bayes' rule for a beta-distributed accuracy.

        The beta distribution has the mean and the spread of the estimate (Gelman et al. 2013, "Bayesian data analysis",
        section 2.4).
        """
        if right + wrong == 0:
            return self
        # The wider side: the other one may be cut at 0 or 1.
        spread = max(self.upper - self.value, self.value - self.lower) / Z_90
        weight = max(self.value * (1 - self.value) / max(spread, LEAST_SPREAD) ** 2 - 1, LEAST_WEIGHT)
        frames = weight + right + wrong
        value = (self.value * weight + right) / frames
        return Estimate(value, *wilson(value * frames, frames, Z_90))


@dataclass(frozen=True)
class AccuracyEstimator:
    """Examples of M windows of frames behind simulated drifts, and what the network's outputs are on clean frames.

    signs: (M, 2) of calibrate.estimate.signs. accuracies: (M,) of all frames behind the same drift. errors: (M,) of the
    estimate for each example by the examples of other kinds of drift. labelled: number of frames of known class.
    """

    calibration: OutputCalibration
    signs: Tensor
    accuracies: Tensor
    errors: Tensor
    labelled: Tensor

    @property
    def classes(self) -> int:
        """Number of classes of the network."""
        return len(self.calibration.probabilities)

    @property
    def typical_error(self) -> float:
        """Mean absolute error for a kind of drift that is not among the examples, 0 to 1."""
        return float(self.errors.abs().mean())

    def estimate(self, signs: Tensor) -> Estimate:
        """Estimate the accuracy from the signs of one window, (2,).

        The value is the mean of the nearest examples (Fix & Hodges 1951), the interval the quantile of the errors that
        examples of other drifts make there (conformal prediction: Vovk et al. 2005; local, as Lei & Wasserman 2014).
        The labelled frames are a sample, too: their number widens the interval.
        """
        distances = self._scaled.distances(signs[None])[0]
        value = float(nearest_mean(distances, self.accuracies))
        near = distances.topk(min(NEIGHBOURS_OF_INTERVAL, len(distances)), largest=False).indices
        error = float(self.errors[near].abs().quantile(COVERAGE))
        labelled = float(self.labelled)
        lower, upper = wilson(value * labelled, labelled, Z_90)
        return Estimate.around(value, math.hypot(error, (upper - lower) / 2))

    @cached_property
    def _scaled(self) -> ScaledSigns:
        return ScaledSigns(self.signs)

    def tensors(self) -> dict[str, Tensor]:
        """Return everything by the names under which a file stores it."""
        own = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "calibration"}
        return {PREFIX + name: tensor for name, tensor in (own | self.calibration.tensors()).items()}

    @classmethod
    def of_tensors(cls, tensors: Mapping[str, Tensor]) -> AccuracyEstimator | None:
        """Rebuild it; None where a file holds no estimate.

        Raises ValueError for tensors that are missing, of shapes that do not fit together, or not finite.
        """
        stored = {name.removeprefix(PREFIX): tensor for name, tensor in tensors.items() if name.startswith(PREFIX)}
        if not stored:
            return None
        names = {field.name for part in (cls, OutputCalibration) for field in fields(part)} - {"calibration"}
        sound = [tensor.is_floating_point() and torch.isfinite(tensor).all() for tensor in stored.values()]
        if stored.keys() != names or not all(sound):
            raise ValueError("the accuracy estimate is not whole")
        calibration = OutputCalibration(**{field.name: stored.pop(field.name) for field in fields(OutputCalibration)})
        estimator = cls(calibration, **stored)
        if not estimator._fits_together():
            raise ValueError("the accuracy estimate has tensors of other shapes or out of range")
        return estimator

    def _fits_together(self) -> bool:
        known, calibration = self.signs.shape, self.calibration
        scalars = [tensor for name, tensor in calibration.tensors().items() if name != "probabilities"]
        scalars.append(self.labelled)
        return (
            len(known) == 2
            and known[0] > 0
            and known[1] == SIGNS
            and bool((self.labelled > 0).all() and (calibration.temperature > 0).all())
            and bool(((self.accuracies >= 0) & (self.accuracies <= 1)).all())
            and self.accuracies.shape == self.errors.shape == known[:1]
            and all(tensor.shape == () for tensor in scalars)
            and calibration.probabilities.dim() == 1
        )


class ScaledSigns:
    """Signs of M examples (M, 2), each sign in units of its standard deviation."""

    def __init__(self, signs: Tensor):
        self._spread = signs.std(0, correction=0).clamp_min(1e-6)
        self._scaled = signs / self._spread

    def distances(self, signs: Tensor) -> Tensor:
        """Return the squared distances of signs (Q, 2) to the examples, (Q, M)."""
        return torch.cdist(signs / self._spread, self._scaled).square()


def nearest_mean(distances: Tensor, values: Tensor) -> Tensor:
    """Return the mean of the NEIGHBOURS values (M,) with the smallest distances (..., M), nearer ones weighing more."""
    nearest, indices = distances.topk(min(NEIGHBOURS, distances.shape[-1]), largest=False)
    weights = 1 / (nearest + SOFTENING)
    mean: Tensor = (weights * values[indices]).sum(-1) / weights.sum(-1)
    return mean
