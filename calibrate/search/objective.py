"""The objective of a fit and its exact gradient, in memory bounded by a chunk whatever the batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from calibrate.features.class_statistics import Target
from calibrate.features.feature_maps import FeatureMap
from calibrate.features.statistics import (
    VARIANCE_FLOOR,
    FeatureStatistics,
    ImageMoments,
    gaussian_divergence,
    log_variance_error,
)
from calibrate.source.augmentation import PaddedCrop, augment
from calibrate.source.training import Limits

CHUNK_PIXELS = 2**20  # of frames at once: 1,024 at 32x32, 20 at 224x224, about 2 GB of a ResNet-20's activations
EXCESS_WEIGHT = 0.1  # nats per square unit: chosen from 0, 0.03, 0.1 and 0.3 on perturbation draws 0 and 4

Transform = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Objective:
    """Gaussian divergence of the features' statistics from the target, mean over channels, then over layers.

    features: what statistics are taken of. crop: what training did to the frames behind the target.
    With ClassStatistics as target the divergence is that of each class, mean over the classes the frames have.
    criterion: weight of the cross-entropy of the logits with the labels (r_crit of Willis & Oala 2021).
    limits: of the restored values; what lies outside adds EXCESS_WEIGHT times its mean square.
    """

    features: FeatureMap
    target: Target
    crop: PaddedCrop | None = None
    criterion: float = 0.0
    limits: Limits | None = None

    def floor(self, rho: Transform, frames: Tensor) -> float:
        """What the objective is on average for as many clean frames: the sampling error of their own statistics."""
        with torch.no_grad():
            moments = self._observe_all(rho, frames).moments
        triples = zip(moments.first, moments.second, self.target.variances, strict=True)
        return float(torch.stack([_sampling_divergence(*triple).mean() for triple in triples]).mean())

    def evaluate_last(self, rho: Transform, frames: Tensor, labels: Tensor | None = None) -> float:
        """The objective with the divergence of the last layer alone."""
        with torch.no_grad():
            seen = self._observe_all(rho, frames)
            return float(self._divergences(seen.moments, labels)[-1] + EXCESS_WEIGHT * seen.excess.mean())

    def evaluate(self, rho: Transform, frames: Tensor, labels: Tensor | None = None) -> float:
        """The objective on all frames at once."""
        with torch.no_grad():
            return float(self._loss(self._observe_all(rho, frames), labels))

    @torch.enable_grad()
    def backpropagate(self, rho: nn.Module, batch: Tensor, labels: Tensor | None = None) -> Tensor:
        """Add the gradient of the objective on the whole batch to rho's parameters alone; returns the objective.

        The frozen network in evaluation mode does not couple frames, so where the batch is larger than a chunk
        the gradient is exact in two passes: one for the objective's gradient in what each frame shows, one that
        carries this gradient back chunk by chunk. Nothing is carried back if the objective is not finite.
        """
        trained = [p for p in rho.parameters() if p.requires_grad]
        if len(batch) <= chunk_size(batch):
            loss = self._loss(self._observe(rho, batch, 0), labels)
            if torch.isfinite(loss):
                loss.backward(inputs=trained)
            return loss.detach()
        with torch.no_grad():
            seen = self._observe_all(rho, batch)
        loss, gradients = self._gradient(seen, labels)
        if torch.isfinite(loss):
            for first, chunk in _chunks(batch):
                observed = self._observe(rho, chunk, first).tensors()
                shares = [g[first : first + len(chunk)] for g in gradients]
                torch.autograd.backward(observed, shares, inputs=trained)
        return loss

    def _observe(self, rho: Transform, chunk: Tensor, first: int) -> Observation:
        restored = rho(chunk)
        excess = 0 * restored.mean((1, 2, 3)) if self.limits is None else self.limits.excess(restored)
        with _reduced_precision(chunk):
            features, output = self.features(augment(self.crop, restored, first))
        logits = output.float() if self.criterion and output is not None else None
        return Observation(ImageMoments.of(features), excess, logits)

    def _observe_all(self, rho: Transform, frames: Tensor) -> Observation:
        return Observation.join([self._observe(rho, chunk, first) for first, chunk in _chunks(frames)])

    def _gradient(self, seen: Observation, labels: Tensor | None) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The objective, and its gradient in every tensor of the observation, frame by frame."""
        tensors = [t.requires_grad_() for t in seen.tensors()]
        loss = self._loss(seen, labels)
        return loss.detach(), torch.autograd.grad(loss, tensors)

    def _loss(self, seen: Observation, labels: Tensor | None) -> Tensor:
        loss = self._divergences(seen.moments, labels).mean() + EXCESS_WEIGHT * seen.excess.mean()
        if self.criterion:
            assert seen.output is not None and labels is not None
            loss = loss + self.criterion * F.cross_entropy(seen.output, labels)
        return loss

    def _divergences(self, moments: ImageMoments, labels: Tensor | None) -> Tensor:
        share, rows = _averaging(self.target, len(moments), labels)
        layers = []
        for first, second, mean, variance in zip(
            moments.first, moments.second, self.target.means, self.target.variances, strict=True
        ):
            observed = share @ first  # (K, C)
            spread = share @ second - observed.square()
            layers.append(gaussian_divergence(observed, spread, mean[rows], variance[rows]).mean())
        return torch.stack(layers)


@dataclass(frozen=True)
class Observation:
    """What the objective reads of frames: their moments, what lies outside the limits (N,), and, for a criterion,
    the logits (N, K)."""

    moments: ImageMoments
    excess: Tensor
    output: Tensor | None

    @staticmethod
    def join(chunks: list[Observation]) -> Observation:
        outputs = [c.output for c in chunks if c.output is not None]
        moments, excess = ImageMoments.join(c.moments for c in chunks), torch.cat([c.excess for c in chunks])
        return Observation(moments, excess, torch.cat(outputs) if outputs else None)

    def tensors(self) -> list[Tensor]:
        output = [] if self.output is None else [self.output]
        return [*self.moments.first, *self.moments.second, self.excess, *output]


def _averaging(target: Target, count: int, labels: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """What averages frames, (K, N), for each class that has some, and the rows of the target they belong to.

    Plain statistics are one class of all frames; indexing their (C,) with None makes them a row.
    """
    if isinstance(target, FeatureStatistics):
        return torch.full((1, count), 1 / count), None
    assert labels is not None
    present = labels.unique()
    member = (labels == present[:, None]).float()
    return member / member.sum(1, keepdim=True), present


def _sampling_divergence(first: Tensor, second: Tensor, variance: Tensor) -> Tensor:
    """Expected divergence (C,) of N frames' statistics from those of all frames, from their spread (N, C).

    To second order the divergence is half the squared standardised error of the mean and a quarter of that of the
    logarithm of the variance.
    """
    mean_error = first.var(0) / len(first) / variance.clamp_min(VARIANCE_FLOOR)
    return 0.5 * mean_error + 0.25 * log_variance_error(first, second)


def chunk_size(frames: Tensor) -> int:
    return max(1, CHUNK_PIXELS // (frames.shape[2] * frames.shape[3]))


def _chunks(frames: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Each chunk after the index of its first frame."""
    size = chunk_size(frames)
    return zip(range(0, len(frames), size), frames.split(size), strict=True)


def _reduced_precision(frames: Tensor) -> AbstractContextManager[None]:
    """bfloat16 for the convolutions where the processor computes in it; statistics stay float32."""
    return torch.autocast(frames.device.type, torch.bfloat16, enabled=frames.device.type == "cpu" and HAS_BFLOAT16)


# 0.32 s instead of 0.57 s for a step of ResNet-20 with 128 frames on one core; emulated it would be slower.
HAS_BFLOAT16 = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
