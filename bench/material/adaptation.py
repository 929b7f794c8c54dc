"""What users would pick instead of recald, each in a few lines, and recald itself behind the same three verbs."""

from __future__ import annotations

import copy

import numpy as np
import torch
from torch import Tensor, nn

from calibrate import Limits, fit
from calibrate.search.starts import monge_map

LEVELS = 257  # quantiles a histogram is kept as
TENT_RATE = 1e-3  # Wang et al. 2021 on CIFAR-10, with Adam and batches of 200


class Method:
    """Serves a copy of a model behind a drifted camera; this one does nothing about the drift."""

    def __init__(self, model: nn.Module):
        self.model = copy.deepcopy(model).eval().requires_grad_(False)

    def adapt(self, frames: Tensor) -> None:
        """Learn from unlabelled drifted frames (N, C, H, W), before serving."""

    def restore(self, frames: Tensor) -> Tensor:
        """The frames as the model shall see them."""
        return frames

    def predict(self, frames: Tensor) -> Tensor:
        """Logits (N, K) of one batch of the stream; what adapts online does it here."""
        with torch.no_grad():
            logits: Tensor = self.model(self.restore(frames))
        return logits


class TargetNorm(nn.BatchNorm2d):
    """BatchNorm by the statistics of the batch it is given, which replace the shipped ones.

    prior: how many images the shipped statistics weigh in the blend, N of Schneider et al. 2020.
    """

    def __init__(self, shipped: nn.BatchNorm2d, prior: int):
        super().__init__(shipped.num_features, shipped.eps)
        self.load_state_dict(shipped.state_dict())
        assert shipped.running_mean is not None and shipped.running_var is not None
        self._prior = prior
        self._shipped = shipped.running_mean.clone(), shipped.running_var.clone()

    def forward(self, input: Tensor) -> Tensor:  # named as in the base class
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
        """Logits from before the step that they lead to, as published."""
        with torch.enable_grad():
            logits: Tensor = self.model(frames)
            self._optimizer.zero_grad()
            entropy(logits).mean().backward()
        self._optimizer.step()
        return logits.detach()


def entropy(logits: Tensor) -> Tensor:
    """Of each prediction, in nats: (N, K) to (N,)."""
    return -(logits.softmax(1) * logits.log_softmax(1)).sum(1)


class HistogramMatching(Method):
    """Per channel the monotone curve from the camera's histogram to the source's (Gonzalez & Woods, chapter 3)."""

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
    """Knots of a curve from quantiles to quantiles; a grey level that holds several goes to their middle."""
    levels, holder = np.unique(target, return_inverse=True)
    return levels, np.bincount(holder, source) / np.bincount(holder)


def quantiles(frames: Tensor) -> np.ndarray:
    """Of each channel over all frames and places: (N, C, H, W) to (C, LEVELS)."""
    pixels = frames.transpose(0, 1).flatten(1).numpy()
    return np.quantile(pixels, np.linspace(0, 1, LEVELS), axis=1).T


class ColourMatching(Method):
    """Mean and covariance of the colours to the source's: Reinhard et al. 2001, with the linear map of
    Pitie & Kokaram 2007."""

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
    """Mean (C,) and covariance (C, C) over all frames and places."""
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
