"""The sensor perturbation δ of Willis & Oala (2021), drawn as in their code."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

KAPPA = 0.15  # the paper's strength on CIFAR-10


class Perturbation:
    """Adds a fixed noise image, then applies two 3x3 convolutions near the identity; normalised space, no clipping."""

    def __init__(self, draw: int, kappa: float = KAPPA, shape: tuple[int, int, int] = (3, 32, 32)):
        generator = torch.Generator().manual_seed(draw)
        channels = shape[0]
        self.pattern = kappa * torch.randn(1, *shape, generator=generator)
        self.layers = []
        for _ in range(2):
            weight = kappa * torch.randn(channels, channels, 3, 3, generator=generator)
            weight[range(channels), range(channels), 1, 1] += 1
            self.layers.append((weight, kappa * torch.randn(channels, generator=generator)))

    def __call__(self, images: Tensor) -> Tensor:
        """Perturb frames (N, C, H, W) in normalised space; return the same shape."""
        images = images + self.pattern
        for weight, bias in self.layers:
            images = F.conv2d(F.pad(images, (1, 1, 1, 1), mode="reflect"), weight, bias)
        return images
