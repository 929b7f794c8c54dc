"""The procedure of Willis & Oala (2021), "Post-hoc domain adaptation via guided data homogenization", as published.

What `calibrate.fitting` is compared with: their reconstruction network, their norms, statistics of one batch at a
time, Adam at a constant rate, the last iterate. Details that the paper leaves open are those of its code.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from calibrate.features.class_statistics import ClassStatistics
from calibrate.features.feature_maps import FeatureMap
from calibrate.features.statistics import FeatureStatistics, ImageMoments
from calibrate.fitting import Clock, Progress
from calibrate.validation import FitError

ABSENT = (0.0, 1.0)  # mean and variance that stand for a class that a batch has no frame of


class ReconstructionNetwork(nn.Module):
    """Their ρ: a 1x1 convolution that begins as the identity, `depth` residual blocks and a last BatchNorm.

    Frames (N, channels, H, W) to the same shape, H and W at least 2. width: channels inside a block. Unlike
    `Homogenizer` it is not the identity when new: the residual stream is rectified after all blocks but the last.
    """

    def __init__(self, channels: int, width: int = 8, depth: int = 8):
        super().__init__()
        self.colour = nn.Conv2d(channels, channels, 1)
        with torch.no_grad():
            self.colour.weight.copy_(torch.eye(channels)[:, :, None, None])
        self.blocks = nn.Sequential(*(ReconstructionBlock(channels, width, n, n < depth - 1) for n in range(depth)))
        self.normalize = nn.BatchNorm2d(channels)

    def forward(self, frames: Tensor) -> Tensor:
        normalized: Tensor = self.normalize(self.blocks(self.colour(frames)))
        return normalized


class ReconstructionBlock(nn.Module):
    """x + BN(conv(ReLU(BN(conv(x))))), 3x3 with reflected borders, the later blocks begun with smaller weights."""

    def __init__(self, channels: int, width: int, index: int, rectified: bool):
        super().__init__()
        self.change = nn.Sequential(
            _convolution(channels, width, index),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            _convolution(width, channels, index),
            nn.BatchNorm2d(channels),
        )
        self.rectified = rectified

    def forward(self, frames: Tensor) -> Tensor:
        changed: Tensor = frames + self.change(frames)
        return changed.relu() if self.rectified else changed


def _convolution(inputs: int, outputs: int, index: int) -> nn.Conv2d:
    convolution = nn.Conv2d(inputs, outputs, 3, padding=1, padding_mode="reflect")
    with torch.no_grad():
        convolution.weight.mul_(1 / math.sqrt(index + 1))
        assert convolution.bias is not None
        convolution.bias.zero_()
    return convolution


@dataclass(frozen=True)
class PublishedFit:
    """rho: ρ, the last iterate, in evaluation mode, without gradients. history: loss of each step.

    passes: frames that went through the feature map, forwards and back.
    """

    rho: nn.Module
    history: list[float] = field(repr=False)
    seconds: float
    passes: int


def fit_as_published(
    feature_map: FeatureMap,
    rho: nn.Module,
    frames: Tensor,
    target: FeatureStatistics | ClassStatistics,
    *,
    labels: Tensor | None = None,
    criterion: float = 0.0,
    statistics: float = 10.0,
    epochs: int = 100,
    batch: int = 128,
    rate: float = 0.1,
    seed: int = 0,
    progress: Progress | None = None,
    clock: Clock | None = None,
) -> PublishedFit:
    """Train `rho` in place until the features of rho(frames) match `target`.

    The loss of a batch is `statistics` (their r_stats) times the mean over feature maps of
    |mean - target mean| + |variance - target variance|, Euclidean norms over channels, plus `criterion` (their
    r_crit) times the cross-entropy of the feature map's logits with `labels`.

    frames: (N, C, H, W) float32, the drifted frames; labels: (N,) int64, or None without supervision.
    target: with ClassStatistics the norms are those of each class, averaged over classes, and a class that a batch
    lacks has mean 0 and variance 1. The paper collects it from its training images (`collect_statistics`). Where the
    features are the frozen network's own, the statistics shipped in it may stand in; they are those of augmented
    frames, and a network trained on padded crops has the borders in them.
    rate: Adam's, 0.1 in the paper. With CIFAR-10 and a published ResNet-20 the loss falls further at 0.03.
    seed: of the order of the frames. clock: such as time.perf_counter, for the seconds in the result.
    Raises FitError for a target of other features, for missing labels or logits and for a loss that is not finite.
    """
    began = clock() if clock else math.nan
    _refuse_unusable(feature_map, target, labels, criterion)
    optimizer = torch.optim.Adam(rho.parameters(), rate)
    history: list[float] = []
    steps = epochs * math.ceil(len(frames) / batch)
    rho.train()
    for chosen in _batches(len(frames), epochs, batch, seed):
        named = None if labels is None else labels[chosen]
        loss = published_loss(feature_map, rho(frames[chosen]), target, named, criterion, statistics)
        if not torch.isfinite(loss):
            raise FitError(f"the loss is not finite at step {len(history) + 1}; lower the rate of {rate:g}")
        optimizer.zero_grad()
        loss.backward(inputs=list(rho.parameters()))
        optimizer.step()
        history.append(float(loss.detach()))
        if progress is not None:
            progress(len(history), steps, history[-1])
    seconds = clock() - began if clock else math.nan
    return PublishedFit(rho.eval().requires_grad_(False), history, seconds, epochs * len(frames))


def published_loss(
    feature_map: FeatureMap,
    frames: Tensor,
    target: FeatureStatistics | ClassStatistics,
    labels: Tensor | None = None,
    criterion: float = 0.0,
    statistics: float = 10.0,
) -> Tensor:
    """The loss of one batch of restored frames (N, C, H, W); see `fit_as_published`."""
    tapped = feature_map(frames)
    loss = statistics * statistics_distance(ImageMoments.of(tapped.features), target, labels)
    if criterion:
        if tapped.output is None or labels is None:
            raise FitError("the criterion needs labels and a feature map with logits: see with_logits")
        loss = loss + criterion * F.cross_entropy(tapped.output, labels)
    return loss


def statistics_distance(
    moments: ImageMoments, target: FeatureStatistics | ClassStatistics, labels: Tensor | None = None
) -> Tensor:
    """Mean over feature maps of the norms of the differences in mean and in variance, averaged over classes."""
    weights = _class_weights(len(moments), target, labels)
    layers = []
    for first, second, mean, variance in zip(
        moments.first, moments.second, target.means, target.variances, strict=True
    ):
        observed, spread = _observed(weights.to(first), first, second)  # (K, C) each
        layers.append(((observed - mean).norm(dim=1) + (spread - variance).norm(dim=1)).mean())
    return torch.stack(layers).mean()


def _class_weights(count: int, target: FeatureStatistics | ClassStatistics, labels: Tensor | None) -> Tensor:
    """(K, N) with rows that average the frames of a class, zero where there is none; K = 1 without classes."""
    if isinstance(target, FeatureStatistics):
        return torch.full((1, count), 1 / count)
    assert labels is not None
    member = F.one_hot(labels, len(target)).T.float()
    return member / member.sum(1, keepdim=True).clamp_min(1)


def _observed(weights: Tensor, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance (K, C) of each class from the moments of each frame (N, C)."""
    mean = weights @ first
    variance = weights @ second - mean.square()
    present = weights.sum(1, keepdim=True) > 0
    return torch.where(present, mean, ABSENT[0]), torch.where(present, variance, ABSENT[1])


def _refuse_unusable(
    feature_map: FeatureMap, target: FeatureStatistics | ClassStatistics, labels: Tensor | None, criterion: float
) -> None:
    if target.names != feature_map.names:
        raise FitError("the target statistics are those of other features than the feature map has")
    if labels is None and (criterion or isinstance(target, ClassStatistics)):
        raise FitError("class-conditional statistics and the criterion need labels")


def _batches(count: int, epochs: int, batch: int, seed: int) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        yield from torch.randperm(count, generator=generator).split(batch)
