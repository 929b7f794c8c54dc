"""The objective of a fit and its exact gradient, in memory that is bounded by a chunk for any number of frames."""

from __future__ import annotations

from collections.abc import Callable, Iterator
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

    All methods take frames (N, C, H, W) in normalised input units and labels (N,) int64, None without classes and
    criterion. They raise ValueError for a target with another number of layers than the features.
    """

    features: FeatureMap
    target: Target
    crop: PaddedCrop | None = None
    criterion: float = 0.0
    limits: Limits | None = None

    def clean_floor(self, rho: Transform, frames: Tensor) -> float:
        """Estimate the mean objective of as many clean frames: the sampling error of their own statistics, in nats."""
        with torch.no_grad():
            moments = self._observe_all(rho, frames).moments
        triples = zip(moments.first, moments.second, self.target.variances, strict=True)
        return float(torch.stack([_sampling_divergence(*triple).mean() for triple in triples]).mean())

    def evaluate_last_layer(self, rho: Transform, frames: Tensor, labels: Tensor | None = None) -> float:
        """Return the divergence of the last layer plus the weighted excess over the limits, in nats."""
        with torch.no_grad():
            observed = self._observe_all(rho, frames)
            divergence = self._divergences(observed.moments, labels)[-1]
            return float(divergence + LIMIT_EXCESS_WEIGHT * observed.excess.mean())

    def evaluate(self, rho: Transform, frames: Tensor, labels: Tensor | None = None) -> float:
        """Return the objective on all frames at once, in nats."""
        with torch.no_grad():
            return float(self._loss(self._observe_all(rho, frames), labels))

    @torch.enable_grad()
    def backpropagate(self, rho: nn.Module, batch: Tensor, labels: Tensor | None = None) -> Tensor:
        """Add the gradient of the objective on the whole batch to the parameters of ρ alone; return the objective.

        A frozen network in evaluation mode does not couple frames. For a batch larger than a chunk the gradient is
        therefore exact in two passes: the first gives the gradient of the objective in what each frame shows, the
        second carries it back chunk by chunk. An objective that is not finite adds no gradient.
        """
        trained = [p for p in rho.parameters() if p.requires_grad]
        if len(batch) <= _chunk_size(batch):
            loss = self._loss(self._observe(rho, batch, 0), labels)
            if torch.isfinite(loss):
                loss.backward(inputs=trained)
            return loss.detach()
        with torch.no_grad():
            observed = self._observe_all(rho, batch)
        whole = [t.requires_grad_() for t in observed.tensors()]
        loss = self._loss(observed, labels)
        gradients = torch.autograd.grad(loss, whole)  # one row for each frame
        if torch.isfinite(loss):
            for first, chunk in _chunks(batch):
                tensors = self._observe(rho, chunk, first).tensors()
                shares = [g[first : first + len(chunk)] for g in gradients]
                torch.autograd.backward(tensors, shares, inputs=trained)
        return loss.detach()

    def _observe(self, rho: Transform, chunk: Tensor, first: int) -> Observation:
        """Observe ρ(chunk). first: index of its first frame, which decides where the frames are cropped."""
        restored = rho(chunk)
        excess = 0 * restored.mean((1, 2, 3)) if self.limits is None else self.limits.excess(restored)
        device = chunk.device.type  # convolutions in bfloat16 where a processor has it; statistics stay float32
        with torch.autocast(device, torch.bfloat16, enabled=device == "cpu" and HAS_BFLOAT16):
            features, output = self.features(augment(self.crop, restored, first))
        logits = output.float() if self.criterion and output is not None else None
        return Observation(ImageMoments.of(features), excess, logits)

    def _observe_all(self, rho: Transform, frames: Tensor) -> Observation:
        return Observation.join([self._observe(rho, chunk, first) for first, chunk in _chunks(frames)])

    def _loss(self, observed: Observation, labels: Tensor | None) -> Tensor:
        loss = self._divergences(observed.moments, labels).mean() + LIMIT_EXCESS_WEIGHT * observed.excess.mean()
        if self.criterion:
            assert observed.output is not None and labels is not None
            loss = loss + self.criterion * F.cross_entropy(observed.output, labels)
        return loss

    def _divergences(self, moments: ImageMoments, labels: Tensor | None) -> Tensor:
        """Return the divergence of each layer (L,), mean over channels and classes."""
        weights, rows = _class_averages(self.target, len(moments), labels)
        layers = []
        for first, second, mean, variance in zip(
            moments.first, moments.second, self.target.means, self.target.variances, strict=True
        ):
            observed_mean = weights @ first  # (K, C)
            observed_variance = weights @ second - observed_mean.square()
            layers.append(gaussian_divergence(observed_mean, observed_variance, mean[rows], variance[rows]).mean())
        return torch.stack(layers)


def _class_averages(target: Target, count: int, labels: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Return weights (K, N) that average the frames of each class with frames, and the classes' rows in the target.

    Plain statistics are one class of all frames; indexing their (C,) with None makes them a row.
    """
    if isinstance(target, FeatureStatistics):
        return torch.full((1, count), 1 / count), None
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


def _chunk_size(frames: Tensor) -> int:
    """Return how many frames of the size of `frames` (N, C, H, W) make one chunk, at least 1."""
    return max(1, OBJECTIVE_CHUNK_PIXELS // (frames.shape[2] * frames.shape[3]))


def _chunks(frames: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Yield the index of the first frame of each chunk, and the chunk."""
    size = _chunk_size(frames)
    return zip(range(0, len(frames), size), frames.split(size), strict=True)
