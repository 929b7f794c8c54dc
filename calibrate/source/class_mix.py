"""Clean frames of each class, and what statistics they have in another mix of classes.

BatchNorm statistics are those of the classes that training showed. A camera that sees some classes more often has other
statistics although nothing has drifted, and a fit would undo its mix. Where the mix is known, the statistics for it
follow from those of the classes: means and second moments of a mixture are the weighted means of its components'.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from calibrate.features.class_statistics import ClassStatistics
from calibrate.features.statistics import FeatureStatistics, ImageMoments
from calibrate.validation import FitError

MIN_MEASURED_FRAMES = 16  # of a class; the mean of fewer is off by more than a quarter of a standard deviation
MIN_MIXED_FRAMES = 64  # that a mix must be as exact as: a drift check's window by default
CLASSES_PREFIX = "class."  # of the names under which a file stores the tensors

Shares = Mapping[int, float]  # of the frames, by the number of a class; they add up to 1


@dataclass(frozen=True)
class CleanClasses:
    """Statistics of clean frames of each class with MIN_MEASURED_FRAMES or more.

    numbers: (K,) int64, the classes in ascending order. statistics: of these classes, in this order.
    """

    numbers: Tensor
    statistics: ClassStatistics

    def mixed(self, shares: Shares) -> tuple[FeatureStatistics, int]:
        """Return the statistics of frames with these shares of the classes, and how many random frames are as exact.

        Raises FitError for a share of a class without statistics.
        """
        weights = self._weights(shares)
        names, counts = self.statistics.names, self.statistics.counts
        means, variances = [], []
        for mean, variance in zip(self.statistics.means, self.statistics.variances, strict=True):
            mixed = weights @ mean.double()
            second = weights @ (variance.double() + mean.double().square())
            means.append(mixed.float())
            variances.append((second - mixed.square()).clamp_min(0).float())
        frames = int(1 / float((weights.square() / counts).sum()))
        return FeatureStatistics(names, tuple(means), tuple(variances)), frames

    def check(self, shares: Shares) -> None:
        """Raise FitError for a share of a class without statistics, and for a mix that is known too roughly."""
        frames = self.mixed(shares)[1]
        if frames < MIN_MIXED_FRAMES:
            errors = self._weights(shares).square() / self.statistics.counts
            number, count = (int(values[errors.argmax()]) for values in (self.numbers, self.statistics.counts))
            raise FitError(
                f"the mix is known as roughly as by {frames} frames, since class {number} had {count} clean ones: "
                f"{MIN_MIXED_FRAMES} are needed"
            )

    def _weights(self, shares: Shares) -> Tensor:
        places = {number: place for place, number in enumerate(self.numbers.tolist())}
        weights = torch.zeros(len(places), dtype=torch.float64)
        for number, share in shares.items():
            if share and number not in places:
                raise FitError(f"class {number} had fewer than {MIN_MEASURED_FRAMES} clean frames")
            if share:
                weights[places[number]] = share
        return weights / weights.sum()

    def tensors(self) -> dict[str, Tensor]:
        """Return the statistics by the names under which a file stores them."""
        classes = self.statistics
        stored = {"numbers": self.numbers, "counts": classes.counts}
        stored |= {f"mean.{n}": m for n, m in zip(classes.names, classes.means, strict=True)}
        stored |= {f"variance.{n}": v for n, v in zip(classes.names, classes.variances, strict=True)}
        return {CLASSES_PREFIX + name: tensor for name, tensor in stored.items()}

    @staticmethod
    def of_tensors(tensors: Mapping[str, Tensor], reference: FeatureStatistics) -> CleanClasses | None:
        """Rebuild the statistics of a network that ships `reference`; None where a file has none.

        Raises ValueError for a tensor that is missing, of another shape or kind, or has values that cannot be.
        """
        numbers = tensors.get(f"{CLASSES_PREFIX}numbers")
        if numbers is None:
            return None
        counts = _stored(tensors, "counts", numbers.shape)
        if numbers.dim() != 1 or not len(numbers) or numbers.dtype != torch.int64 or counts.dtype != torch.int64:
            raise ValueError("the classes are not numbered")
        if not (numbers.diff() > 0).all() or numbers[0] < 0 or counts.min() < MIN_MEASURED_FRAMES:
            raise ValueError("the classes are not in order, or too small")
        shapes = [(len(numbers), len(mean)) for mean in reference.means]
        names = reference.names
        means, variances = (
            tuple(_stored(tensors, f"{kind}.{name}", shape) for name, shape in zip(names, shapes, strict=True))
            for kind in ("mean", "variance")
        )
        return CleanClasses(numbers, ClassStatistics(names, means, variances, counts))


def measure_classes(moments: ImageMoments, names: tuple[str, ...], labels: Tensor) -> CleanClasses | None:
    """Return the statistics of each class of clean frames that has enough of them; None where none has.

    moments: of the features of the frames. names: of the layers. labels: (N,) int64, the classes of the frames.
    """
    numbers, counts = labels.unique(return_counts=True)
    numbers, counts = (values[counts >= MIN_MEASURED_FRAMES] for values in (numbers, counts))
    if not len(numbers):
        return None
    classes = [moments.select(labels == number).statistics(names) for number in numbers]
    return CleanClasses(numbers, ClassStatistics.stack(classes, counts))


def _stored(tensors: Mapping[str, Tensor], name: str, shape: tuple[int, ...]) -> Tensor:
    tensor = tensors.get(CLASSES_PREFIX + name)
    if tensor is None or tensor.shape != shape:
        raise ValueError(f"{CLASSES_PREFIX}{name} is missing or of another shape")
    return tensor
