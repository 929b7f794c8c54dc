"""Noise frames of known colours and spectrum, and networks of one layer that ship the statistics of such frames."""

from __future__ import annotations

import torch
from torch import nn

from calibrate.source.training import pink_noise

SHAPE = (3, 16, 16)
MEAN = torch.tensor([0.3, -0.2, 0.5])
ROOT = torch.tensor([[0.9, 0.0, 0.0], [0.6, 0.5, 0.0], [0.4, 0.3, 0.4]])
COVARIANCE = ROOT @ ROOT.T
BLACK = (-2.1, -2.0, -1.8)


def coloured(count: int, seed: int, exponent: float = 2.0) -> torch.Tensor:
    """Draw frames (N, 3, 16, 16) of mean colour MEAN, channel covariance COVARIANCE and power ~ 1/f^exponent."""
    noise = pink_noise(3 * count, SHAPE[1:], exponent, torch.Generator().manual_seed(seed))
    return torch.einsum("cd,ndhw->nchw", ROOT, noise.view(count, *SHAPE)) + MEAN.view(1, 3, 1, 1)


def network(frames: torch.Tensor, *before: nn.Module, filters: int = 8) -> nn.Module:
    """Return `before`, a random convolution and a BatchNorm layer that has measured its response to `frames`."""
    torch.manual_seed(0)
    convolution = nn.Conv2d(frames.shape[1], filters, 3, padding=1)
    module = nn.Sequential(*before, convolution, nn.BatchNorm2d(filters, momentum=None))
    with torch.no_grad():
        module(frames)
    return module.eval()


def distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Return the norm of the difference of two tensors, relative to `expected`."""
    return float((found - expected).norm() / expected.norm())
