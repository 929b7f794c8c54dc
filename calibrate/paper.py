"""The procedure of Willis & Oala (2021), "Post-hoc domain adaptation via guided data homogenization", as published.

Benches compare `calibrate.fitting` with it: the paper's reconstruction network and norms, statistics of one batch at a
time, Adam at a constant rate, the last iterate. Details that the paper does not state follow its code.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from calibrate.features.class_statistics import ClassStatistics, Target
from calibrate.features.feature_maps import FeatureMap
from calibrate.features.statistics import FeatureStatistics, ImageMoments
from calibrate.fitting import Clock, FitProgress
from calibrate.validation import FitError

ABSENT_CLASS_MEAN, ABSENT_CLASS_VARIANCE = 0.0, 1.0  # of a class without a frame in a batch, as in the paper's code


class ReconstructionBlock(nn.Module):
    """x + BN(conv(ReLU(BN(conv(x))))) with 3x3 convolutions and reflected borders, for frames (N, channels, H, W).

    index: number of the block from 0; the initial weights shrink with it. rectified: whether a ReLU follows.
    """

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


class ReconstructionNetwork(nn.Module):
    """The paper's ρ: a 1x1 convolution that starts as the identity, `depth` residual blocks and a final BatchNorm.

    It maps frames (N, channels, H, W) to the same shape, for H and W of at least 2. width: channels inside a block.
    Unlike `Homogenizer` it is not the identity when new: a ReLU follows every block but the last.
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


@dataclass(frozen=True)
class PublishedFit:
    """The result of `fit_as_published`.

    rho: ρ of the last step, in evaluation mode and without gradients. history: loss of each step.
    seconds: NaN without a clock. passes: number of frames that went through the feature map, forward and backward.
    """

    rho: nn.Module
    history: list[float] = field(repr=False)
    seconds: float
    passes: int


def fit_as_published(
    feature_map: FeatureMap,
    rho: nn.Module,
    frames: Tensor,
    target: Target,
    *,
    labels: Tensor | None = None,
    criterion: float = 0.0,
    statistics: float = 10.0,
    epochs: int = 100,
    batch: int = 128,
    rate: float = 0.1,
    seed: int = 0,
    progress: FitProgress | None = None,
    clock: Clock | None = None,
) -> PublishedFit:
    """Train `rho` in place so that the features of rho(frames) match `target`. The default values are the paper's.

    The loss of a batch is `statistics` (r_stats of the paper) times the mean over feature maps of
    |mean - target mean| + |variance - target variance|, Euclidean norms over channels, plus `criterion` (r_crit of the
    paper) times the cross-entropy of the feature map's logits with `labels`.

    frames: (N, C, H, W) float32, the drifted frames, normalised. labels: (N,) int64, or None without supervision.
    target: the paper collects it from its training images (`collect_statistics`). The statistics shipped in the
    network can replace it for the network's own features. They describe augmented frames: those of a network that was
    trained on padded crops contain the borders. With ClassStatistics the norms are averaged over classes.
    epochs: passes over all frames. batch: frames in a step.
    rate: of Adam. With CIFAR-10 and a published ResNet-20 the loss falls further at 0.03 than at the paper's 0.1.
    seed: of the order of the frames. clock: such as time.perf_counter, for the seconds in the result.
    Raises FitError for a target of other features, for missing labels or logits and for a loss that is not finite.
    """
    began = clock() if clock else math.nan
    _check_inputs(feature_map, target, labels, criterion)
    optimizer = torch.optim.Adam(rho.parameters(), rate)
    history: list[float] = []
    steps = epochs * math.ceil(len(frames) / batch)
    rho.train()
    for chosen in _batches(len(frames), epochs, batch, seed):
        chosen_labels = None if labels is None else labels[chosen]
        loss = published_loss(feature_map, rho(frames[chosen]), target, chosen_labels, criterion, statistics)
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
    target: Target,
    labels: Tensor | None = None,
    criterion: float = 0.0,
    statistics: float = 10.0,
) -> Tensor:
    """Return the loss of one batch of restored frames (N, C, H, W), a scalar; see `fit_as_published`.

    Raises FitError if the criterion has no labels or no logits.
    """
    forward = feature_map(frames)
    loss = statistics * statistics_distance(ImageMoments.of(forward.features), target, labels)
    if criterion:
        if forward.output is None or labels is None:
            raise FitError("the criterion needs labels and a feature map with logits: see with_logits")
        loss = loss + criterion * F.cross_entropy(forward.output, labels)
    return loss


def statistics_distance(moments: ImageMoments, target: Target, labels: Tensor | None = None) -> Tensor:
    """Return |mean - target mean| + |variance - target variance|, averaged over classes and feature maps, a scalar.

    moments: of N frames. labels: (N,) int64 for ClassStatistics. A class without a frame counts as mean 0, variance 1.
    """
    weights = _class_weights(len(moments), target, labels)
    layers = []
    for first, second, mean, variance in zip(
        moments.first, moments.second, target.means, target.variances, strict=True
    ):
        found_mean, found_variance = _class_moments(weights.to(first), first, second)  # (K, C) each
        layers.append(((found_mean - mean).norm(dim=1) + (found_variance - variance).norm(dim=1)).mean())
    return torch.stack(layers).mean()


def _class_weights(count: int, target: Target, labels: Tensor | None) -> Tensor:
    """Return weights (K, N) that average the frames of each class, 0 for a class without any. K = 1 without classes."""
    if isinstance(target, FeatureStatistics):
        return torch.full((1, count), 1 / count)
    assert labels is not None
    member = F.one_hot(labels, len(target)).T.float()
    return member / member.sum(1, keepdim=True).clamp_min(1)


def _class_moments(weights: Tensor, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and variance (K, C) of each class from the moments (N, C) of each frame."""
    mean = weights @ first
    variance = weights @ second - mean.square()
    present = weights.sum(1, keepdim=True) > 0
    return torch.where(present, mean, ABSENT_CLASS_MEAN), torch.where(present, variance, ABSENT_CLASS_VARIANCE)


def _check_inputs(feature_map: FeatureMap, target: Target, labels: Tensor | None, criterion: float) -> None:
    if target.names != feature_map.names:
        raise FitError(
            "the target statistics are those of other features than the feature map has: collect them with it"
        )
    if labels is None and (criterion or isinstance(target, ClassStatistics)):
        raise FitError("class-conditional statistics and the criterion need labels")


def _batches(count: int, epochs: int, batch: int, seed: int) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        yield from torch.randperm(count, generator=generator).split(batch)
