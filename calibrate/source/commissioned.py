"""Measure clean frames once, at commissioning, for networks whose shipped statistics are not exact enough.

Shipped statistics describe frames as training augmented them. Crops are detected (calibrate.source.training), other
augmentations are not. Statistics measured on a camera's own clean frames describe the frames as they come.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from calibrate.features.class_statistics import collect_moments
from calibrate.features.statistics import FeatureStatistics
from calibrate.features.taps import Taps
from calibrate.source.class_mix import CleanClasses, Shares, measure_classes
from calibrate.source.description import Source, measured_source
from calibrate.source.spectra import RadialProfile
from calibrate.validation import FitError, validate_frames

MIN_CLEAN_FRAMES = 256  # with fewer frames, sampling error hides a mild drift


class CleanData(NamedTuple):
    """What was measured on clean frames.

    statistics: of the BatchNorm inputs. source: colours and spectrum. frames: number of frames. classes: statistics of
    each class, where the classes of the frames are known.
    """

    statistics: FeatureStatistics
    source: Source
    frames: int
    classes: CleanClasses | None = None

    def in_mix(self, shares: Shares) -> CleanData:
        """Return what frames with these shares of the classes would have shown; their source stays.

        Raises FitError where the classes were not measured.
        """
        if self.classes is None:
            raise FitError("the clean frames were not measured class by class")
        statistics, frames = self.classes.mixed(shares)
        return self._replace(statistics=statistics, frames=frames)

    def tensors(self) -> dict[str, Tensor]:
        """Return the measurements by the names under which a file stores them."""
        names, means, variances = self.statistics.names, self.statistics.means, self.statistics.variances
        layers = {f"mean.{n}": m for n, m in zip(names, means, strict=True)}
        layers |= {f"variance.{n}": v for n, v in zip(names, variances, strict=True)}
        mean, covariance, (density,) = self.source
        layers |= self.classes.tensors() if self.classes else {}
        return layers | {"source.mean": mean, "source.covariance": covariance, "source.density": density}

    @staticmethod
    def of_tensors(
        tensors: Mapping[str, Tensor], frames: int, reference: FeatureStatistics, channels: int
    ) -> CleanData:
        """Rebuild the measurements of a network that ships `reference` and takes images of `channels` channels.

        Raises ValueError for a tensor that is missing, of another shape (as those of another network), or not finite.
        """
        shapes: dict[str, tuple[int, ...]] = {
            f"mean.{n}": m.shape for n, m in zip(reference.names, reference.means, strict=True)
        }
        shapes |= {f"variance.{n}": v.shape for n, v in zip(reference.names, reference.variances, strict=True)}
        shapes |= {"source.mean": (channels,), "source.covariance": (channels, channels)}
        for name, shape in shapes.items():
            if name not in tensors or tensors[name].shape != shape:
                raise ValueError(f"{name} is missing or of another shape")
        density = tensors.get("source.density", torch.zeros(0))
        if density.dim() != 3 or density.shape[1:] != (channels, channels):
            raise ValueError("source.density is missing or of another shape")
        if not all(torch.isfinite(tensor).all() for tensor in tensors.values()):
            raise ValueError("not all values are finite")
        means, variances = (tuple(tensors[f"{k}.{n}"] for n in reference.names) for k in ("mean", "variance"))
        source = Source(tensors["source.mean"], tensors["source.covariance"], RadialProfile(density))
        classes = CleanClasses.of_tensors(tensors, reference)
        return CleanData(FeatureStatistics(reference.names, means, variances), source, frames, classes)


def measure_clean(taps: Taps, frames: Tensor, labels: Tensor | None = None) -> CleanData:
    """Measure clean frames (N, C, H, W) in normalised input units, N >= MIN_CLEAN_FRAMES.

    labels: (N,) int64, their classes, where they are known: then each class is measured, too.
    Raises FitError for fewer frames, and for frames that are not float, not finite, not normalised or all the same.
    """
    if len(frames) < MIN_CLEAN_FRAMES:
        raise FitError(f"{len(frames)} clean frames are too few to measure: at least {MIN_CLEAN_FRAMES} are needed")
    validate_frames(frames)
    moments = collect_moments(taps, frames)
    classes = None if labels is None else measure_classes(moments, taps.names, labels)
    return CleanData(moments.statistics(taps.names), measured_source(frames), len(frames), classes)
