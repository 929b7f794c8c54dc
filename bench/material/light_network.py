"""A network so light that frames of 640x640 are answered within a few milliseconds on a CPU, for benches of stalls."""

from __future__ import annotations

import torch
from torch import nn

CLASSES = 10
STRIDE = 8  # of the only convolution
STATISTICS_SEED = 0


def light_network() -> nn.Module:
    """Build one convolution, BatchNorm and a linear layer with random weights; its statistics are those of noise."""
    torch.manual_seed(STATISTICS_SEED)
    norm = nn.BatchNorm2d(8, momentum=None)
    network = nn.Sequential(
        nn.Conv2d(3, 8, STRIDE, STRIDE, bias=False),
        norm,
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, CLASSES),
    )
    with torch.no_grad():
        network(torch.randn(64, 3, 64, 64))
    return network.eval()
