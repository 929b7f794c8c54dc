"""A network of the size of ResNet-50 and homogenizers for it, for benches of time."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from calibrate.homogenizer import Homogenizer

STAGES = ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2))  # width, blocks, stride: ResNet-50 (He et al. 2016)
HOMOGENIZER_NOISE = 0.01  # sd that is added to each parameter of the identity
MAX_ADDED_SHARE = 0.05  # the claim: ρ adds no more than this share of the network's time


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolution, and a shortcut."""

    def __init__(self, channels: int, width: int, stride: int):
        super().__init__()
        self.change = nn.Sequential(
            *_layer(channels, width, 1),
            nn.ReLU(),
            *_layer(width, width, 3, stride),
            nn.ReLU(),
            *_layer(width, 4 * width, 1),
        )
        same = channels == 4 * width and stride == 1
        self.shortcut = nn.Identity() if same else nn.Sequential(*_layer(channels, 4 * width, 1, stride))

    def forward(self, frames: Tensor) -> Tensor:
        return torch.relu(self.change(frames) + self.shortcut(frames))


def _layer(channels: int, outputs: int, size: int, stride: int = 1) -> Sequence[nn.Module]:
    return nn.Conv2d(channels, outputs, size, stride, size // 2, bias=False), nn.BatchNorm2d(outputs)


def resnet50() -> nn.Module:
    """Build the layers of ResNet-50 with random weights, which take as long as trained ones."""
    layers = [*_layer(3, 64, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    channels = 64
    for width, blocks, stride in STAGES:
        for number in range(blocks):
            layers.append(Bottleneck(channels, width, 1 if number else stride))
            channels = 4 * width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 1000)).eval()


def random_homogenizer(shape: tuple[int, int, int], seed: int) -> Homogenizer:
    """Build a homogenizer near the identity for frames of `shape` (C, H, W); each seed gives another one."""
    generator = torch.Generator().manual_seed(seed)
    homogenizer = Homogenizer(*shape).eval().requires_grad_(False)
    for parameter in homogenizer.parameters():
        parameter.add_(HOMOGENIZER_NOISE * torch.randn(parameter.shape, generator=generator))
    return homogenizer


def count_work(module: nn.Module, shape: tuple[int, int, int]) -> dict[str, int]:
    """Count the multiplications of one frame of `shape` (C, H, W) and the parameters.

    Multiplications are those that torch counts. In the homogenizer's they include the zeros in its blocks.
    """
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module(torch.zeros(1, *shape))
    parameters = sum(p.numel() for p in module.parameters())
    return {"multiplications": counter.get_total_flops() // 2, "parameters": parameters}
