"""The objective of a fit and its exact gradient, in memory that is bounded by a chunk for any number of frames."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

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
from calibrate.source.description import Limits

# Pixels of frames at once: 1,024 frames of 32x32 or 20 of 224x224, about 2 GB of activations of a ResNet-20.
OBJECTIVE_CHUNK_PIXELS = 2**20
LIMIT_EXCESS_WEIGHT = 0.1  # nats per squared input unit; the best of 0, 0.03, 0.1, 0.3 on perturbation draws 0 and 4

# True if the processor computes in bfloat16. A step of ResNet-20 with 128 frames then takes 0.32 s instead of 0.57 s on
# one core. Emulated bfloat16 would be slower than float32.
HAS_BFLOAT16 = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()

Transform = Callable[[Tensor], Tensor]  # frames (N, C, H, W) to frames of the same shape


@dataclass(frozen=True)
class Observation:
    """What the objective reads from N frames.

    moments: of the features. excess: (N,) mean square outside the limits.
    output: logits (N, K) for the cross-entropy, None without it.
    """

    moments: ImageMoments
    excess: Tensor
    output: Tensor | None

    @staticmethod
    def join(chunks: list[Observation]) -> Observation:
        """Join chunks as if all frames had been observed at once."""
        outputs = [c.output for c in chunks if c.output is not None]
        moments, excess = ImageMoments.join(c.moments for c in chunks), torch.cat([c.excess for c in chunks])
        return Observation(moments, excess, torch.cat(outputs) if outputs else None)

    def tensors(self) -> list[Tensor]:
        """Return all tensors, each with one row for each frame."""
        output = [] if self.output is None else [self.output]
        return [*self.moments.first, *self.moments.second, self.excess, *output]


@dataclass(frozen=True)
class Objective:
    """Gaussian divergence of the features' statistics from the target in nats, mean over channels, then over layers.

    Willis & Oala (2021) take Euclidean norms of the differences instead (see calibrate.paper). The divergence gives
    channels and layers of any scale the same weight.

    features: the map that statistics are taken of.
    target: with ClassStatistics the divergence is that of each class, averaged over the classes that have frames.
    crop: the crop in the training behind the target.
    criterion: weight of the cross-entropy of the logits with the labels (r_crit of the paper).
    limits: of the restored values. Values outside add LIMIT_EXCESS_WEIGHT times their mean square excess.
    chunk: frames at once. Default: as many as OBJECTIVE_CHUNK_PIXELS allows.

    `loss`, `last_layer_loss` and `differentiate` return tensors and do not look at them, so that they can be captured
    (calibrate.gpu) where there are no labels.

    All methods take frames (N, C, H, W) in normalised input units and labels (N,) int64, None without classes and
    criterion. They raise ValueError for a target with another number of layers than the features.
    """

    features: FeatureMap
    target: Target
    crop: PaddedCrop | None = None
    criterion: float = 0.0
    limits: Limits | None = None
    chunk: int | None = None

    def clean_floor(self, rho: Transform, frames: Tensor) -> float:
        """Estimate the mean objective of as many clean frames: the sampling error of their own statistics, in nats."""
        with torch.no_grad():
            first, second = self._channels(self._observe_all(rho, frames).moments)
        return float((_sampling_divergence(first, second, self._target_variances) @ self._channel_weights).mean())

    def evaluate(self, rho: Transform, frames: Tensor, labels: Tensor | None = None) -> float:
        """Return the objective on all frames at once, in nats."""
        return float(self.loss(rho, frames, labels))

    def evaluate_last_layer(self, rho: Transform, frames: Tensor, labels: Tensor | None = None) -> float:
        """Return the divergence of the last layer plus the weighted excess over the limits, in nats."""
        return float(self.last_layer_loss(rho, frames, labels))

    @torch.no_grad()
    def loss(self, rho: Transform, frames: Tensor, labels: Tensor | None = None) -> Tensor:
        """Compute the objective on all frames at once, in nats."""
        return self._loss(self._observe_all(rho, frames), labels)

    @torch.no_grad()
    def last_layer_loss(self, rho: Transform, frames: Tensor, labels: Tensor | None = None) -> Tensor:
        """Compute the divergence of the last layer plus the weighted excess over the limits, in nats."""
        observed = self._observe_all(rho, frames)
        last = self._divergences(observed.moments, labels)[:, -self.target.means[-1].shape[-1] :]
        return last.mean() + LIMIT_EXCESS_WEIGHT * observed.excess.mean()

    @torch.enable_grad()
    def differentiate(
        self, rho: Transform, trained: Sequence[Tensor], batch: Tensor, labels: Tensor | None = None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Compute the objective on the whole batch, and its gradient in each of the tensors that ρ depends on.

        A frozen network in evaluation mode does not couple frames. For a batch larger than a chunk the gradient is
        therefore exact in two passes: the first gives the gradient of the objective in what each frame shows, the
        second carries it back chunk by chunk. An objective that is not finite has a gradient that means nothing.
        """
        if self._in_one_chunk(batch):
            loss = self._loss(self._observe(rho, batch, 0), labels)
            return loss.detach(), torch.autograd.grad(loss, trained)
        with torch.no_grad():
            observed = self._observe_all(rho, batch)
        whole = [t.requires_grad_() for t in observed.tensors()]
        loss = self._loss(observed, labels)
        shares = torch.autograd.grad(loss, whole)  # one row for each frame
        total = [torch.zeros_like(t) for t in trained]
        for first, chunk in self._chunks(batch):
            tensors = self._observe(rho, chunk, first).tensors()
            parts = torch.autograd.grad(tensors, trained, [s[first : first + len(chunk)] for s in shares])
            total = [t + part for t, part in zip(total, parts, strict=True)]
        return loss.detach(), tuple(total)

    def can_be_captured(self, frames: Tensor, labels: Tensor | None) -> bool:
        """Return whether the work on these frames is worth being captured on a GPU (calibrate.gpu).

        The kernels of many chunks take longer than their launches, and labels have to be looked at.
        """
        return frames.is_cuda and labels is None and self._in_one_chunk(frames)

    def _in_one_chunk(self, frames: Tensor) -> bool:
        return len(frames) <= self._chunk_size(frames)

    def _observe(self, rho: Transform, chunk: Tensor, first: int) -> Observation:
        """Observe ρ(chunk). first: index of its first frame, which decides where the frames are cropped."""
        restored = rho(chunk)
        excess = 0 * restored.mean((1, 2, 3)) if self.limits is None else self.limits.excess(restored)
        # Convolutions in bfloat16 where a processor has it; statistics stay float32.
        with torch.autocast("cpu", torch.bfloat16, enabled=chunk.device.type == "cpu" and HAS_BFLOAT16):
            features, output = self.features(augment(self.crop, restored, first))
        logits = output.float() if self.criterion and output is not None else None
        return Observation(ImageMoments.of(features), excess, logits)

    def _observe_all(self, rho: Transform, frames: Tensor) -> Observation:
        return Observation.join([self._observe(rho, chunk, first) for first, chunk in self._chunks(frames)])

    def _loss(self, observed: Observation, labels: Tensor | None) -> Tensor:
        divergence = (self._divergences(observed.moments, labels) @ self._channel_weights).mean()
        loss = divergence + LIMIT_EXCESS_WEIGHT * observed.excess.mean()
        if self.criterion:
            assert observed.output is not None and labels is not None
            loss = loss + self.criterion * F.cross_entropy(observed.output, labels)
        return loss

    def _divergences(self, moments: ImageMoments, labels: Tensor | None) -> Tensor:
        """Return the divergence of each channel of all layers (K, C) for K classes; K is 1 for plain statistics."""
        first, second = self._channels(moments)
        weights, rows = _class_averages(self.target, first, labels)
        observed_mean = weights @ first  # (K, C)
        observed_variance = weights @ second - observed_mean.square()
        return gaussian_divergence(
            observed_mean, observed_variance, self._target_means[rows], self._target_variances[rows]
        )

    def _channels(self, moments: ImageMoments) -> tuple[Tensor, Tensor]:
        """Return first and second moments of the channels of all layers (N, C): a GPU then computes all at once."""
        if len(moments.first) != len(self.target.means):
            raise ValueError(f"the target has {len(self.target.means)} layers, the features {len(moments.first)}")
        return torch.cat(moments.first, 1), torch.cat(moments.second, 1)

    @cached_property
    def _target_means(self) -> Tensor:
        return torch.cat(self.target.means, -1)  # (C,), or (classes, C)

    @cached_property
    def _target_variances(self) -> Tensor:
        return torch.cat(self.target.variances, -1)

    @cached_property
    def _channel_weights(self) -> Tensor:
        """Weights (C,) of the mean over the channels of a layer and then over layers."""
        means = self.target.means
        return torch.cat([m.new_full(m.shape[-1:], 1 / (m.shape[-1] * len(means))) for m in means])

    def _chunk_size(self, frames: Tensor) -> int:
        return self.chunk or default_chunk(frames)

    def _chunks(self, frames: Tensor) -> Iterator[tuple[int, Tensor]]:
        """Yield the index of the first frame of each chunk, and the chunk."""
        size = self._chunk_size(frames)
        return zip(range(0, len(frames), size), frames.split(size), strict=True)


def _class_averages(target: Target, moments: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Return weights (K, N) that average the frames of each class with frames, and the classes' rows in the target.

    moments: (N, C).
    Plain statistics are one class of all frames; indexing their (C,) with None makes them a row.
    """
    if isinstance(target, FeatureStatistics):
        return moments.new_full((1, len(moments)), 1 / len(moments)), None
    assert labels is not None
    present = labels.unique()
    member = (labels == present[:, None]).float()
    return member / member.sum(1, keepdim=True), present


def _sampling_divergence(first: Tensor, second: Tensor, variance: Tensor) -> Tensor:
    """Return the expected divergence (C,) of N frames' statistics from those of all frames, from their moments (N, C).

    To second order the divergence is half the squared standardised error of the mean plus a quarter of the squared
    error of the logarithm of the variance.
    """
    mean_error = first.var(0) / len(first) / variance.clamp_min(VARIANCE_FLOOR)
    return 0.5 * mean_error + 0.25 * log_variance_error(first, second)


def default_chunk(frames: Tensor) -> int:
    """Return how many frames of the size of `frames` (N, C, H, W) make one chunk, at least 1."""
    return max(1, OBJECTIVE_CHUNK_PIXELS // (frames.shape[2] * frames.shape[3]))
