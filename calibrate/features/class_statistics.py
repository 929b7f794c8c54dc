"""Channel means and variances of features for each class, where labels are known (the CC rows of the paper)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import overload

import torch
from torch import Tensor

from calibrate.features.feature_maps import FeatureMap
from calibrate.features.statistics import FeatureStatistics, ImageMoments

CHUNK = 128  # frames that go through a feature map at once


@dataclass(frozen=True)
class ClassStatistics:
    """Mean and biased variance of every channel of every layer, for each class.

    names: (L,) layers; means, variances: L tensors of shape (K, C_l); counts: (K,) images of each class.
    Raises ValueError where they do not fit together or are not finite.
    """

    names: tuple[str, ...]
    means: tuple[Tensor, ...]
    variances: tuple[Tensor, ...]
    counts: Tensor
    shipped = False  # no network ships them

    def __post_init__(self) -> None:
        for label in range(len(self)):
            self.of(label)

    def __len__(self) -> int:
        return len(self.counts)

    def of(self, label: int) -> FeatureStatistics:
        """The statistics of one class."""
        return FeatureStatistics(
            self.names, tuple(m[label] for m in self.means), tuple(v[label] for v in self.variances)
        )


Target = FeatureStatistics | ClassStatistics  # what a fit aims at


@overload
def collect_statistics(
    feature_map: FeatureMap, frames: Tensor, labels: None = None, *, chunk: int = CHUNK
) -> FeatureStatistics: ...
@overload
def collect_statistics(
    feature_map: FeatureMap, frames: Tensor, labels: Tensor, *, chunk: int = CHUNK
) -> ClassStatistics: ...
def collect_statistics(
    feature_map: FeatureMap, frames: Tensor, labels: Tensor | None = None, *, chunk: int = CHUNK
) -> FeatureStatistics | ClassStatistics:
    """Mean and variance of the features of `frames` (N, C, H, W), with `labels` (N,) int64 those of each class.

    Exact over all frames and positions, where the paper averages the variances of batches of 128.
    chunk: frames at once; it bounds memory and does not change the result.
    Raises ValueError for no frames, labels of another length, and a class below the highest label without a frame.
    """
    if len(frames) == 0:
        raise ValueError("statistics need at least one frame")
    with torch.no_grad():
        moments = ImageMoments.join(ImageMoments.of(feature_map(part).features) for part in frames.split(chunk))
    if labels is None:
        return moments.statistics(feature_map.names)
    return _by_class(moments, feature_map.names, labels)


def _by_class(moments: ImageMoments, names: tuple[str, ...], labels: Tensor) -> ClassStatistics:
    if labels.shape != (len(moments),):
        raise ValueError(f"{len(moments)} frames need as many labels, got {tuple(labels.shape)}")
    counts = torch.bincount(labels)
    absent = (counts == 0).nonzero().flatten().tolist()
    if absent:
        raise ValueError(f"no frame is of class {absent[0]}: statistics of each class need frames of each")
    classes = [_select(moments, labels == label).statistics(names) for label in range(len(counts))]
    layers = range(len(names))
    return ClassStatistics(
        names,
        tuple(torch.stack([c.means[i] for c in classes]) for i in layers),
        tuple(torch.stack([c.variances[i] for c in classes]) for i in layers),
        counts,
    )


def _select(moments: ImageMoments, images: Tensor) -> ImageMoments:
    return ImageMoments(tuple(m[images] for m in moments.first), tuple(m[images] for m in moments.second))
