"""CIFAR-10 and the published networks for it."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from calibrate import Limits
from daemon.demo import datasets, networks
from daemon.images import read_npz
from deploy.model.export import build_module

WEIGHTS = {
    "resnet20": "resnet20-12fca82f.th",
    "resnet32": "resnet32-d509ac18.th",
    "resnet44": "resnet44-014dd654.th",
    "resnet56": "resnet56-4bfd9763.th",
}

LIMITS = Limits.of(datasets.IMAGENET_MEAN, datasets.IMAGENET_STD)


class Images(NamedTuple):
    """Pictures (N, 32, 32, 3) uint8 RGB with their original pixels, and labels (N,) int64."""

    pictures: np.ndarray
    labels: Tensor


def lossless(path: Path) -> Images:
    """Read the images of a file that still have their original pixels."""
    arrays = read_npz(path)
    kept = arrays["lossless"]
    return Images(arrays["images"][kept], torch.from_numpy(arrays["labels"][kept].astype(np.int64)))


def network(data: Path, name: str) -> nn.Module:
    """Load a network of WEIGHTS from `data`/models, in evaluation mode and without gradients."""
    module = build_module(f"{networks.__name__}:cifar_{name}", data / "models" / WEIGHTS[name])
    return module.eval().requires_grad_(False)


def normalise(images: np.ndarray) -> Tensor:
    """Convert (N, H, W, 3) uint8 to (N, 3, H, W) float32, normalised as for the training of the networks."""
    mean, std = torch.tensor(datasets.IMAGENET_MEAN), torch.tensor(datasets.IMAGENET_STD)
    return ((torch.from_numpy(images) / 255 - mean) / std).permute(0, 3, 1, 2).contiguous()


def accuracy(network: nn.Module, frames: Tensor, labels: Tensor) -> float:
    """Return the accuracy on frames (N, C, H, W) with labels (N,), in percent."""
    with torch.no_grad():
        named = torch.cat([network(chunk).argmax(1) for chunk in frames.split(256)])
    return 100 * float((named == labels).float().mean())
