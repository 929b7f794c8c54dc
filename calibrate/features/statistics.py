"""Channel means and variances of features, exact over any number of chunks, and the divergence between two of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

# Smallest variance used in logarithms and divisions. It keeps a dead channel finite, and is far below the eps of any
# BatchNorm layer (1e-5).
VARIANCE_FLOOR = 1e-6


@dataclass(frozen=True)
class FeatureStatistics:
    """Mean and biased variance of every channel of every layer.

    names: L layer names.
    means, variances: L tensors of shape (C_l,) each.
    shipped: True for the running statistics of a network. They describe frames as training augmented them.
    Raises ValueError if the number of names, means and variances differs, and for values that are not finite.
    """

    names: tuple[str, ...]
    means: tuple[Tensor, ...]
    variances: tuple[Tensor, ...]
    shipped: bool = False

    def __post_init__(self) -> None:
        if not len(self.names) == len(self.means) == len(self.variances):
            raise ValueError("statistics need one mean and one variance for each layer")
        values = [value.flatten() for value in (*self.means, *self.variances)]
        if values and not torch.isfinite(torch.cat(values)).all():  # one question for a GPU instead of one a layer
            raise ValueError(f"statistics of layer {self._first_not_finite()!r} are not finite")

    def to(self, device: torch.device) -> FeatureStatistics:
        """Return the same statistics on another device."""
        means, variances = (tuple(t.to(device) for t in part) for part in (self.means, self.variances))
        return FeatureStatistics(self.names, means, variances, self.shipped)

    def _first_not_finite(self) -> str:
        layers = zip(self.names, self.means, self.variances, strict=True)
        return next(n for n, m, v in layers if not (torch.isfinite(m).all() and torch.isfinite(v).all()))


class _PositionMoments(torch.autograd.Function):
    """Mean over positions of x and of x squared: (N, C, positions) to two tensors (N, C), float32.

    The backward pass is written out because autograd's own makes five passes over the features. One is enough.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(x)
        norm: Tensor = torch.linalg.vector_norm(x, dim=2, dtype=torch.float32)
        return x.mean(2, dtype=torch.float32), norm.square() / x.shape[2]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        first, second = ((g / x.shape[2]).to(x.dtype).unsqueeze(2) for g in gradients)
        return torch.addcmul(first, x, second, value=2)


@dataclass(frozen=True)
class ImageMoments:
    """First and second moment of every channel, kept for each image: standard errors need their spread over images.

    first, second: L tensors of shape (N, C_l): mean over positions of x and of x squared.
    """

    first: tuple[Tensor, ...]
    second: tuple[Tensor, ...]

    def __len__(self) -> int:
        return self.first[0].shape[0]

    @staticmethod
    def of(features: Sequence[Tensor]) -> ImageMoments:
        """Compute the moments of features, L tensors (N, C_l, ...) of any float type. The moments are float32."""
        pairs = [_PositionMoments.apply(f.flatten(2) if f.dim() > 2 else f.unsqueeze(2)) for f in features]
        return ImageMoments(tuple(first for first, _ in pairs), tuple(second for _, second in pairs))

    @staticmethod
    def join(chunks: Iterable[ImageMoments]) -> ImageMoments:
        """Join the moments of one or more chunks, as if all images had been one batch."""
        parts = list(chunks)
        if len(parts) == 1:
            return parts[0]
        layers = range(len(parts[0].first))
        return ImageMoments(
            tuple(torch.cat([p.first[i] for p in parts]) for i in layers),
            tuple(torch.cat([p.second[i] for p in parts]) for i in layers),
        )

    def select(self, images: Tensor) -> ImageMoments:
        """Return the moments of the chosen images, (N,) bool."""
        return ImageMoments(tuple(m[images] for m in self.first), tuple(m[images] for m in self.second))

    def statistics(self, names: tuple[str, ...]) -> FeatureStatistics:
        """Compute mean and variance over all images and positions. Sums are float64, results float32.

        Raises ValueError for another number of names than layers, and for values that are not finite.
        """
        means = tuple(f.double().mean(0) for f in self.first)
        variances = tuple(
            (s.double().mean(0) - m.square()).clamp_min(0) for s, m in zip(self.second, means, strict=True)
        )
        return FeatureStatistics(names, tuple(m.float() for m in means), tuple(v.float() for v in variances))


def log_variance_error(first: Tensor, second: Tensor) -> Tensor:
    """Return the squared standard error (C,) of the logarithm of the variance, from the moments (N, C) of N images.

    Delta method (van der Vaart 1998, "Asymptotic Statistics", chapter 3) on the images' contributions to the variance.
    """
    mean = first.mean(0)
    variance = (second.mean(0) - mean.square()).clamp_min(VARIANCE_FLOOR)
    influence = (second - 2 * mean * first + mean.square()) / variance  # (N, C), mean 1
    return influence.var(0) / len(first)


def gaussian_divergence(mean: Tensor, variance: Tensor, to_mean: Tensor, to_variance: Tensor) -> Tensor:
    """Return KL(N(mean, variance) || N(to_mean, to_variance)) of each channel, in nats, 0 or more: (..., C) each.

    Kullback & Leibler (1951) for two normal distributions. Variances below VARIANCE_FLOOR count as VARIANCE_FLOOR.
    """
    variance = variance.clamp_min(VARIANCE_FLOOR)
    to_variance = to_variance.clamp_min(VARIANCE_FLOOR)
    ratio = variance / to_variance
    return 0.5 * (ratio - 1 - ratio.log() + (mean - to_mean).square() / to_variance)
