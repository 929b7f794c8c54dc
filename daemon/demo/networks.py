"""Residual BatchNorm networks for small images: the CIFAR ResNets of He et al. and a small one."""

import torch
import torch.nn.functional as F
from torch import nn


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut without weights ("option A" of the paper)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride = stride
        self.added = (outputs - inputs) // 2  # zero channels that the shortcut adds at each end

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return F.relu(y + self.shortcut(x))

    def shortcut(self, x: torch.Tensor) -> torch.Tensor:
        if self.stride == 1 and self.added == 0:
            return x
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.added, self.added))


def stage(inputs: int, outputs: int, stride: int, blocks: int) -> nn.Sequential:
    rest = [Block(outputs, outputs, 1) for _ in range(blocks - 1)]
    return nn.Sequential(Block(inputs, outputs, stride), *rest)


class ResNet(nn.Module):
    """Depth 6n+2: a convolution, three stages of n blocks with 16, 32 and 64 channels, a linear layer."""

    def __init__(
        self, blocks: int, strides: tuple[int, int, int] = (1, 2, 2), classes: int = 10, channels: int = 3
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = stage(16, 16, strides[0], blocks)
        self.layer2 = stage(16, 32, strides[1], blocks)
        self.layer3 = stage(32, 64, strides[2], blocks)
        self.linear = nn.Linear(64, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.bn1(self.conv1(x)))  # (N, 16, H, W)
        x = self.layer3(self.layer2(self.layer1(x)))  # (N, 64, H/4, W/4) with the strides of the paper
        return self.linear(x.mean(dim=(2, 3)))  # (N, classes)


def digits_resnet() -> ResNet:
    return ResNet(blocks=1, strides=(2, 2, 2))


def cifar_resnet20() -> ResNet:
    return ResNet(blocks=3)


def cifar_resnet32() -> ResNet:
    return ResNet(blocks=5)


def cifar_resnet44() -> ResNet:
    return ResNet(blocks=7)


def cifar_resnet56() -> ResNet:
    return ResNet(blocks=9)
