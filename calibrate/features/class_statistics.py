"""Channel means and variances of features for each class, for labelled frames (the paper's CC rows)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import overload

import torch
from torch import Tensor

from calibrate.features.feature_maps import FeatureMap
from calibrate.features.statistics import FeatureStatistics, ImageMoments

STATISTICS_CHUNK_FRAMES = 128  # frames that go through a feature map at once; bounds memory


@dataclass(frozen=True)
class ClassStatistics:
    """Mean and biased variance of every channel of every layer, for each of K classes.

    names: L layer names.
    means, variances: L tensors of shape (K, C_l) each.
    counts: (K,) number of images of each class.
    Raises ValueError if the shapes do not match, and for values that are not finite.
    """

    names: tuple[str, ...]
    means: tuple[Tensor, ...]
    variances: tuple[Tensor, ...]
    counts: Tensor
    shipped = False  # no network ships statistics of each class

    def __post_init__(self) -> None:
        for label in range(len(self)):
            self.of(label)

    @staticmethod
    def stack(classes: Sequence[FeatureStatistics], counts: Tensor) -> ClassStatistics:
        """Join the statistics of one or more classes of so many images."""
        names = classes[0].names
        means, variances = (
            tuple(torch.stack([getattr(c, kind)[layer] for c in classes]) for layer in range(len(names)))
            for kind in ("means", "variances")
        )
        return ClassStatistics(names, means, variances, counts)

    def __len__(self) -> int:
        return len(self.counts)

    def of(self, label: int) -> FeatureStatistics:
        """Return the statistics of one class, 0 to K - 1."""
        return FeatureStatistics(
            self.names, tuple(m[label] for m in self.means), tuple(v[label] for v in self.variances)
        )

    def to(self, device: torch.device) -> ClassStatistics:
        """Return the same statistics on another device."""
        means, variances = (tuple(t.to(device) for t in part) for part in (self.means, self.variances))
        return ClassStatistics(self.names, means, variances, self.counts.to(device))


Target = FeatureStatistics | ClassStatistics  # the statistics that a fit aims at


@overload
def collect_statistics(
    feature_map: FeatureMap, frames: Tensor, labels: None = None, *, chunk: int = STATISTICS_CHUNK_FRAMES
) -> FeatureStatistics: ...
@overload
def collect_statistics(
    feature_map: FeatureMap, frames: Tensor, labels: Tensor, *, chunk: int = STATISTICS_CHUNK_FRAMES
) -> ClassStatistics: ...
def collect_statistics(
    feature_map: FeatureMap, frames: Tensor, labels: Tensor | None = None, *, chunk: int = STATISTICS_CHUNK_FRAMES
) -> FeatureStatistics | ClassStatistics:
    """Measure mean and variance of the features of frames (N, C, H, W); with labels (N,) int64 those of each class.

    The result is exact over all frames and positions. The code of Willis & Oala (2021) averages the variances of
    batches of 128 frames instead.
    chunk: frames at once. It bounds memory and does not change the result.
    Raises ValueError for no frames, for labels of another length, for a class below the highest label without a
    frame, and for features that are not finite.
    """
    moments = collect_moments(feature_map, frames, chunk)
    if labels is None:
        return moments.statistics(feature_map.names)
    return _class_statistics(moments, feature_map.names, labels)


def collect_moments(feature_map: FeatureMap, frames: Tensor, chunk: int = STATISTICS_CHUNK_FRAMES) -> ImageMoments:
    """Measure the moments of the features of each of the frames (N, C, H, W). Raises ValueError for no frames."""
    if len(frames) == 0:
        raise ValueError("statistics need at least one frame")
    with torch.no_grad():
        return ImageMoments.join(ImageMoments.of(feature_map(part).features) for part in frames.split(chunk))


def _class_statistics(moments: ImageMoments, names: tuple[str, ...], labels: Tensor) -> ClassStatistics:
    if labels.shape != (len(moments),):
        raise ValueError(f"{len(moments)} frames need as many labels, got {tuple(labels.shape)}")
    counts = torch.bincount(labels)
    absent = (counts == 0).nonzero().flatten().tolist()
    if absent:
        raise ValueError(f"no frame is of class {absent[0]}: statistics of each class need frames of each")
    classes = [moments.select(labels == label).statistics(names) for label in range(len(counts))]
    return ClassStatistics.stack(classes, counts)
