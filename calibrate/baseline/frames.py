"""Statistics of single frames, from which those of any window of them follow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from calibrate.features.statistics import VARIANCE_FLOOR, FeatureStatistics, ImageMoments

# Of all layers together, evenly spread over them: the frames of a large network's baseline then take 16 MiB at most.
MAX_CHANNELS = 1024
MIN_CERTAINTY = 0.5  # of a class that a frame is said to show: more probable than all others together
WINDOW_CHUNK = 32  # windows that are computed at once; bounds memory


@dataclass(frozen=True)
class FrameStatistics:
    """Moments of N frames in C channels, in units of the shipped mean and standard deviation of each channel.

    first, second: (N, C) means over the positions of one frame of x and of x squared. labels: (N,) int64, the class
    that the network names; -1 where it is not certain, and for a network that is no classifier.
    """

    first: Tensor
    second: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    @staticmethod
    def of(moments: ImageMoments, logits: Tensor | None, reference: FeatureStatistics) -> FrameStatistics:
        """Take them from the moments of N frames and the logits (N, K), None for a network that is no classifier."""
        mean, variance = torch.cat(reference.means), torch.cat(reference.variances).clamp_min(VARIANCE_FLOOR)
        kept = _spread_over(len(mean))
        mean, variance = mean[kept], variance[kept]
        first, second = torch.cat(moments.first, 1)[:, kept], torch.cat(moments.second, 1)[:, kept]
        labels = torch.full((len(first),), -1) if logits is None else _certain_classes(logits)
        standardised = (second - 2 * mean * first + mean.square()) / variance
        return FrameStatistics((first - mean) / variance.sqrt(), standardised, labels)

    @staticmethod
    def join(parts: Sequence[FrameStatistics]) -> FrameStatistics:
        """Join the statistics of several sets of frames, one or more."""
        fields = zip(*((p.first, p.second, p.labels) for p in parts), strict=True)
        return FrameStatistics(*(torch.cat(field) for field in fields))

    def __getitem__(self, rows: Tensor) -> FrameStatistics:
        return FrameStatistics(self.first[rows], self.second[rows], self.labels[rows])

    def clamp(self, limits: Tensor) -> FrameStatistics:
        """Return the same frames, each statistic within its limits (4, C): of `first` low and high, then of `second`.

        One odd frame then decides little (winsorisation: Tukey 1962).
        """
        return FrameStatistics(self.first.clamp(*limits[:2]), self.second.clamp(*limits[2:]), self.labels)

    def put(self, place: int, frames: FrameStatistics, row: int) -> None:
        """Replace one frame by one of others."""
        for own, other in ((self.first, frames.first), (self.second, frames.second), (self.labels, frames.labels)):
            own[place] = other[row]

    def window(self) -> Tensor:
        """Return the statistics of all frames as one window, (2 C,): means, and half the logarithms of variances."""
        return _window(self.first, self.second)

    def windows(self, rows: Tensor) -> Tensor:
        """Return the statistics of W windows of n frames, (W, 2 C). rows: (W, n)."""
        parts = rows.split(WINDOW_CHUNK)
        return torch.cat([_window(self.first[chosen], self.second[chosen]) for chosen in parts])


def _window(first: Tensor, second: Tensor) -> Tensor:
    """Return the statistics (..., 2 C) of frames (..., n, C)."""
    mean = first.mean(-2)
    variance = (second.mean(-2) - mean.square()).clamp_min(VARIANCE_FLOOR)
    return torch.cat([mean, variance.log() / 2], -1)


def _certain_classes(logits: Tensor) -> Tensor:
    most = logits.softmax(1).max(1)
    return torch.where(most.values >= MIN_CERTAINTY, most.indices, -1)


def _spread_over(channels: int) -> Tensor:
    return torch.linspace(0, channels - 1, min(channels, MAX_CHANNELS)).round().long()
