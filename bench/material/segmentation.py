"""A small U-Net that finds handwritten digits on photographs: no classifier, and every mask is exact."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save
from torch import Tensor, nn

from bench.material.cifar import lossless, normalise
from daemon.demo.datasets import cache_folder, single_thread
from daemon.images import read_npz
from deploy.files import write_atomically

SEED = 0
TRAINING_SCENES, EPOCHS, BATCH, RATE = 8000, 4, 64, 4e-3
OPACITY = 0.8  # of a digit in front of its photograph
MIN_CONTRAST = 60  # grey levels between a digit's colour and the mean of its photograph
WEIGHTS = "digits-on-photographs-1.safetensors"  # another number after a change of what is trained


class Scenes(NamedTuple):
    """Images (N, 32, 32, 3) uint8, and where the digit is in each, (N, 32, 32) bool."""

    images: np.ndarray
    masks: np.ndarray


class UNet(nn.Module):
    """Three levels of two 3x3 convolutions with BatchNorm; returns the log odds (N, 1, H, W) of a digit."""

    def __init__(self, channels: int = 3, widths: tuple[int, int, int] = (16, 32, 64)) -> None:
        super().__init__()
        first, second, third = widths
        self.down1, self.down2, self.bottom = _level(channels, first), _level(first, second), _level(second, third)
        self.up2, self.up1 = _level(third + second, second), _level(second + first, first)
        self.head = nn.Conv2d(first, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        fine = self.down1(x)
        middle = self.down2(F.max_pool2d(fine, 2))
        coarse = self.bottom(F.max_pool2d(middle, 2))
        middle = self.up2(torch.cat([F.interpolate(coarse, scale_factor=2.0), middle], 1))
        fine = self.up1(torch.cat([F.interpolate(middle, scale_factor=2.0), fine], 1))
        odds: Tensor = self.head(fine)
        return odds


def _level(inputs: int, outputs: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for first in (inputs, outputs):
        layers += [nn.Conv2d(first, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers)


def scenes(data: Path, part: str, count: int) -> Scenes:
    """Lay digits over photographs, both of one part of their data sets: train or test."""
    photographs = lossless(data / ("cifar10_test.npz" if part == "test" else "cifar10_train_1.npz")).pictures[:count]
    digits = read_npz(data / f"mnist_{part}.npz")["images"][:count]
    rng = np.random.default_rng(SEED)
    strokes = np.zeros((count, 32, 32), np.float32)
    for stroke, digit, (top, left) in zip(strokes, digits, rng.integers(0, 5, (count, 2)), strict=True):
        stroke[top : top + 28, left : left + 28] = digit / 255
    opacity = OPACITY * strokes[..., None]
    images = photographs * (1 - opacity) + _colours(photographs, rng)[:, None, None] * opacity
    return Scenes(images.round().astype(np.uint8), strokes > 0.5)


def _colours(photographs: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw a colour (N, 3) for each digit that differs from its photograph's mean."""
    means = photographs.mean((1, 2))
    colours = rng.uniform(0, 255, means.shape)
    near = np.abs(colours.mean(1) - means.mean(1)) < MIN_CONTRAST
    colours[near] = np.where(means[near] < 128, means[near] + 100, means[near] - 100).clip(0, 255)
    return colours


def trained_unet(data: Path) -> nn.Module:
    """Return the network in evaluation mode without gradients, trained at the first call."""
    path, network = cache_folder() / WEIGHTS, UNet()
    if not path.exists():
        with single_thread(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(SEED)
            network = UNet()
            _train(network, scenes(data, "train", TRAINING_SCENES))
        write_atomically(path, save(network.state_dict()))
    network.load_state_dict(load_file(path))
    return network.eval().requires_grad_(False)


def _train(network: nn.Module, examples: Scenes) -> None:
    optimizer = torch.optim.AdamW(network.parameters(), RATE)
    rng = np.random.default_rng(SEED)
    order = np.concatenate([rng.permutation(len(examples.images)) for _ in range(EPOCHS)])
    batches = np.array_split(order, len(order) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=len(batches))
    network.train()
    for rows in batches:
        odds = network(normalise(examples.images[rows]))[:, 0]
        optimizer.zero_grad()
        F.binary_cross_entropy_with_logits(odds, torch.from_numpy(examples.masks[rows]).float()).backward()
        optimizer.step()
        schedule.step()


def dice(odds: Tensor, masks: np.ndarray) -> float:
    """Return the overlap of found and true pixels over all frames, in percent (Dice 1945)."""
    found, true = odds[:, 0] > 0, torch.from_numpy(masks)
    return 100 * float(2 * (found & true).sum() / (found.sum() + true.sum()))
