"""Networks of the data folder that are no CIFAR ResNets; data/README.md there gives their layers."""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class XrayNetwork(nn.Sequential):
    """Three stages of two 3x3 convolutions with BatchNorm for grey images, a mean over pixels, and a linear layer."""

    def __init__(self, classes: int = 2) -> None:
        layers: list[nn.Module] = []
        inputs = 1
        for outputs, stride in ((24, 1), (48, 2), (96, 2)):
            for first, step in ((inputs, stride), (outputs, 1)):
                layers += [
                    nn.Conv2d(first, outputs, 3, step, padding=1, bias=False),
                    nn.BatchNorm2d(outputs),
                    nn.ReLU(),
                ]
            inputs = outputs
        super().__init__(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, classes))


class LightNetwork(nn.Module):
    """A depthwise separable network with inverted residuals for CIFAR-10 (`cifar10_light_dwconv.pth`)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = _unit(3, 32, 3)
        self.features = nn.Sequential(
            *(_depthwise(32, 64, 1), _inverted(64, 128, 2), _inverted(128, 128, 1), _inverted(128, 256, 2)),
            _depthwise(256, 512, 2),
        )
        self.fc = nn.Linear(512, 10)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.fc(self.features(self.stem(x)).mean((2, 3))))


def _unit(inputs: int, outputs: int, size: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, groups=groups, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.GELU())


def _depthwise(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    return nn.Sequential(*_unit(inputs, inputs, 3, stride, groups=inputs), *_unit(inputs, outputs, 1))


def _inverted(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    return nn.Sequential(*_unit(inputs, 4 * inputs, 1), _depthwise(4 * inputs, outputs, stride))


class CellNetwork(nn.Module):
    """A residual network for blood cells in colour, 64x64 (`wbc_resnet.pth`)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        sizes = ((16, 16, 1), (16, 32, 2), (32, 32, 1), (32, 64, 2), (64, 64, 1), (64, 128, 2))
        self.body = nn.Sequential(*(_CellBlock(*size) for size in sizes))
        self.fc = nn.Linear(128, 5)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.fc(self.body(self.stem(x)).mean((2, 3))))


class _CellBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.a = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.na = nn.BatchNorm2d(outputs)
        self.b = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.nb = nn.BatchNorm2d(outputs)
        same = stride == 1 and inputs == outputs
        projection = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
        self.short = nn.Identity() if same else nn.Sequential(projection, nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = self.nb(self.b(F.relu(self.na(self.a(x)))))
        return torch.relu(y + self.short(x))
