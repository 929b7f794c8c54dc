"""The objective of a fit and its exact gradient, in memory bounded by a chunk whatever the batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from calibrate.features import Taps
from calibrate.statistics import FeatureStatistics, ImageMoments, gaussian_divergence

CHUNK_PIXELS = 2**20  # of frames at once: 1,024 at 32x32, 20 at 224x224, about 2 GB of a ResNet-20's activations

Transform = Callable[[Tensor], Tensor]


def evaluate(taps: Taps, rho: Transform, frames: Tensor, target: FeatureStatistics) -> float:
    """The objective on all frames at once: Gaussian divergence from the target, mean over channels, then layers."""
    with torch.no_grad():
        moments = _moments(taps, rho, frames.split(_chunk(frames)))
        return float(_divergence(moments, target))


@torch.enable_grad()
def backpropagate(taps: Taps, rho: nn.Module, batch: Tensor, target: FeatureStatistics) -> Tensor:
    """Add the gradient of the objective on the whole batch to rho's parameters alone; returns the objective.

    The frozen network in evaluation mode does not couple frames, so where the batch is larger than a chunk
    the gradient is exact in two passes: one for the statistics and the objective's gradient in them, one that
    carries this gradient back chunk by chunk. The second is left out if the objective is not finite.
    """
    size = _chunk(batch)
    trained = [p for p in rho.parameters() if p.requires_grad]
    if len(batch) <= size:
        loss = _divergence(ImageMoments.of(taps(rho(batch)).features), target)
        if torch.isfinite(loss):
            loss.backward(inputs=trained)
        return loss.detach()
    chunks = batch.split(size)
    with torch.no_grad():
        moments = _moments(taps, rho, chunks)
    loss, gradient = _gradient_in_moments(moments, target)
    if torch.isfinite(loss):
        for chunk in chunks:
            observed = ImageMoments.of(taps(rho(chunk)).features)
            _surrogate(observed, gradient, len(batch)).backward(inputs=trained)
    return loss


def _chunk(frames: Tensor) -> int:
    return max(1, CHUNK_PIXELS // (frames.shape[2] * frames.shape[3]))


def _moments(taps: Taps, rho: Transform, chunks: Iterable[Tensor]) -> ImageMoments:
    return ImageMoments.join(ImageMoments.of(taps(rho(chunk)).features) for chunk in chunks)


def _divergence(moments: ImageMoments, target: FeatureStatistics) -> Tensor:
    """Gaussian divergence of the images' channels from the target, mean over channels, then over layers."""
    layers = []
    for first, second, mean, variance in zip(
        moments.first, moments.second, target.means, target.variances, strict=True
    ):
        observed = first.mean(0)
        layers.append(gaussian_divergence(observed, second.mean(0) - observed.square(), mean, variance).mean())
    return torch.stack(layers).mean()


def _gradient_in_moments(moments: ImageMoments, target: FeatureStatistics) -> tuple[Tensor, ImageMoments]:
    """The objective, and its gradient in each image's moments, which is the same for every image: (1, C_l)."""
    mean = ImageMoments(
        tuple(m.mean(0, keepdim=True).requires_grad_() for m in moments.first),
        tuple(m.mean(0, keepdim=True).requires_grad_() for m in moments.second),
    )
    loss = _divergence(mean, target)
    gradients = torch.autograd.grad(loss, [*mean.first, *mean.second])
    layers = len(mean.first)
    return loss.detach(), ImageMoments(gradients[:layers], gradients[layers:])


def _surrogate(observed: ImageMoments, gradient: ImageMoments, count: int) -> Tensor:
    """Linear in the chunk's moments, with the objective's gradient: its backward pass is the chunk's share."""
    moments = (*observed.first, *observed.second)
    shares = [(m.sum(0) * g).sum() for m, g in zip(moments, (*gradient.first, *gradient.second), strict=True)]
    return torch.stack(shares).sum() / count
