"""Methods that could be used instead of recald, and recald itself: each can adapt, restore and predict."""

from __future__ import annotations

import copy

import numpy as np
import torch
from torch import Tensor, nn

from calibrate import Limits, fit
from calibrate.search.starts import monge_map

QUANTILES = 257  # of a stored histogram
TENT_RATE = 1e-3  # Wang et al. 2021 on CIFAR-10, with Adam and batches of 200


class Method:
    """Serves a copy of a model behind a drifted camera, and does nothing about the drift."""

    def __init__(self, model: nn.Module):
        self.model = copy.deepcopy(model).eval().requires_grad_(False)

    def adapt(self, frames: Tensor) -> None:
        """Learn from unlabelled drifted frames (N, C, H, W), before serving."""

    def restore(self, frames: Tensor) -> Tensor:
        """Return the frames (N, C, H, W) as the model is to see them."""
        return frames

    def predict(self, frames: Tensor) -> Tensor:
        """Return the logits (N, K) of one batch of the stream; online methods adapt here."""
        with torch.no_grad():
            logits: Tensor = self.model(self.restore(frames))
        return logits


class TargetNorm(nn.BatchNorm2d):
    """BatchNorm with the statistics of the current batch, which replace the shipped ones.

    prior: the number of images that the shipped statistics count as in the blend, N of Schneider et al. 2020.
    """

    def __init__(self, shipped: nn.BatchNorm2d, prior: int):
        super().__init__(shipped.num_features, shipped.eps)
        self.load_state_dict(shipped.state_dict())
        assert shipped.running_mean is not None and shipped.running_var is not None
        self._prior = prior
        self._shipped = shipped.running_mean.clone(), shipped.running_var.clone()

    def forward(self, input: Tensor) -> Tensor:  # the base class calls it so
        mean = input.mean((0, 2, 3))
        variance = (input.square().mean((0, 2, 3)) - mean.square()).clamp_min(0)
        share = len(input) / (self._prior + len(input))
        mean, variance = (s + share * (t - s) for s, t in zip(self._shipped, (mean, variance), strict=True))
        self.running_mean, self.running_var = mean.detach(), variance.detach()
        scale = self.weight * (variance + self.eps).rsqrt()
        return input * scale[:, None, None] + (self.bias - mean * scale)[:, None, None]


class BatchNormAdaptation(Method):
    """BatchNorm statistics of the test batch (Nado et al. 2020), blended with a prior (Schneider et al. 2020)."""

    def __init__(self, model: nn.Module, prior: int = 0):
        super().__init__(model)
        self.norms = {n: TargetNorm(m, prior) for n, m in self.model.named_modules() if isinstance(m, nn.BatchNorm2d)}
        for name, norm in self.norms.items():
            self.model.set_submodule(name, norm.requires_grad_(False))


class Tent(BatchNormAdaptation):
    """Entropy minimisation of BatchNorm's scales and shifts, one Adam step a batch, online (Wang et al. 2021)."""

    def __init__(self, model: nn.Module):
        super().__init__(model)
        affine = [p for norm in self.norms.values() for p in norm.requires_grad_().parameters()]
        self._optimizer = torch.optim.Adam(affine, lr=TENT_RATE)

    def predict(self, frames: Tensor) -> Tensor:
        """Return the logits (N, K) from before the step that they lead to, as published."""
        with torch.enable_grad():
            logits: Tensor = self.model(frames)
            self._optimizer.zero_grad()
            entropy(logits).mean().backward()
        self._optimizer.step()
        return logits.detach()


def entropy(logits: Tensor) -> Tensor:
    """Return the entropy of each prediction in nats: (N, K) to (N,)."""
    return -(logits.softmax(1) * logits.log_softmax(1)).sum(1)


class HistogramMatching(Method):
    """Maps each channel from the camera's histogram to the source's, monotonically (Gonzalez & Woods, chapter 3)."""

    def __init__(self, model: nn.Module, source: Tensor):
        super().__init__(model)
        self._source = quantiles(source)
        self._curves = [curve(line, line) for line in self._source]

    def adapt(self, frames: Tensor) -> None:
        self._curves = [curve(*lines) for lines in zip(quantiles(frames), self._source, strict=True)]

    def restore(self, frames: Tensor) -> Tensor:
        channels = zip(frames.unbind(1), self._curves, strict=True)
        return torch.stack([torch.from_numpy(np.interp(x, *knots)).float() for x, knots in channels], 1)


def curve(target: np.ndarray, source: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the knots of a curve from quantiles to quantiles; a level with several quantiles goes to their mean."""
    levels, level_of = np.unique(target, return_inverse=True)
    return levels, np.bincount(level_of, source) / np.bincount(level_of)


def quantiles(frames: Tensor) -> np.ndarray:
    """Return the quantiles of each channel over all frames and pixels: (N, C, H, W) to (C, QUANTILES)."""
    pixels = frames.transpose(0, 1).flatten(1).numpy()
    return np.quantile(pixels, np.linspace(0, 1, QUANTILES), axis=1).T


class ColourMatching(Method):
    """Maps the colours linearly to the source's mean and covariance.

    Reinhard et al. 2001, with the linear map of Pitie & Kokaram 2007.
    """

    def __init__(self, model: nn.Module, source: Tensor):
        super().__init__(model)
        self._source = self._target = colours(source)
        self._map = torch.eye(source.shape[1])

    def adapt(self, frames: Tensor) -> None:
        self._target = colours(frames)
        self._map = monge_map(self._target[1], self._source[1])

    def restore(self, frames: Tensor) -> Tensor:
        bias = self._source[0] - self._map @ self._target[0]
        return torch.einsum("cd,ndhw->nchw", self._map, frames) + bias.view(-1, 1, 1)


def colours(frames: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean (C,) and covariance (C, C) over all frames and pixels."""
    pixels = frames.transpose(0, 1).flatten(1)
    return pixels.mean(1), torch.cov(pixels)


class Recald(Method):
    """A homogenizer in front of the untouched model (after Willis & Oala 2021)."""

    def __init__(self, model: nn.Module, limits: Limits | None = None):
        super().__init__(model)
        self._limits = limits
        self._homogenizer: nn.Module = nn.Identity()

    def adapt(self, frames: Tensor) -> None:
        self._homogenizer = fit(self.model, frames, limits=self._limits).homogenizer

    def restore(self, frames: Tensor) -> Tensor:
        restored: Tensor = self._homogenizer(frames)
        return restored
