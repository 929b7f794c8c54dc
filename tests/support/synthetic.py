"""A network that trains in a second, and its images: it tells which of four corners is bright."""

from __future__ import annotations

import copy
import functools

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

SHAPE = (3, 16, 16)
MEAN, STD = [0.5, 0.5, 0.5], [0.25, 0.25, 0.25]
CLASSES = ["north-west", "north-east", "south-west", "south-east"]
BUILDER = "synthetic:trained_network"  # for `recald export`, run in this folder
CORNERS = np.kron(np.eye(4).reshape(4, 2, 2), np.ones((3, 3)))  # (4, 6, 6)


def images(count: int, seed: int) -> np.ndarray:
    """Draw images (n, 16, 16, 3), RGB uint8, like those that the network is trained on."""
    return labelled(count, seed)[0]


def labelled(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw images of coloured blotches with one bright corner, and the number of this corner (n,)."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, len(CLASSES), count)
    scene = random.normal(0, 0.6, (count, 6, 6, 3)) + random.normal(0, 0.3, (count, 1, 1, 1))
    scene += 1.2 * CORNERS[labels][..., None]
    smooth = np.stack([cv2.resize(image, (16, 16), interpolation=cv2.INTER_CUBIC) for image in scene])
    return np.clip(115 + 45 * smooth, 0, 255).astype(np.uint8), labels


def drifted(clean: np.ndarray, light: float = 1.0) -> np.ndarray:
    """Return images (n, 16, 16, 3) uint8 of the same scenes with a shorter exposure and another white balance.

    light: what is left of the light besides. With all of it the network still names nearly every corner, so that the
    judge finds no answers to repair. With 0.65 it errs in every sixth frame, with 0.5 in two of five; it then names one
    corner so often that frames for a fit are slow to come together.
    """
    return (clean * np.array([0.45, 0.6, 0.8]) * light).astype(np.uint8)


@functools.cache
def dark(seed: int = 1) -> np.ndarray:
    """Return 256 images that are `drifted` with a light of 0.65, of which 128 frames for a fit come together in 4 s.

    They are chosen by the network's answers: a fit takes a quarter of its frames of each answer at most, and among
    images as they come one answer is so rare that 7 s pass. With 40 seeds each, every fit to either was accepted.
    """
    stack, network = drifted(images(1024, seed), light=0.65), trained_network()
    with torch.no_grad():
        answers = network(normalised(stack)).argmax(1).numpy()
    chosen = [np.flatnonzero(answers == label)[:count] for label, count in enumerate((40, 64, 64, 88))]
    return stack[np.random.default_rng(seed).permutation(np.concatenate(chosen))]


def normalised(batch: np.ndarray) -> torch.Tensor:
    """Convert images (n, h, w, 3) uint8 to the network's input (n, 3, h, w) float, as the model card says."""
    return (torch.from_numpy(batch).permute(0, 3, 1, 2) / 255 - MEAN[0]) / STD[0]


def trained_network() -> nn.Module:
    """Return a new copy of the network, always of the same weights. Its BatchNorm statistics are those of `images`."""
    network = copy.deepcopy(_trained_once())
    torch.manual_seed(0)  # what a test draws afterwards does not depend on which test trained the network
    return network


@functools.cache
def _trained_once() -> nn.Module:
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8, momentum=None),
        nn.ReLU(),
        nn.Conv2d(8, 12, 3, stride=2, padding=1),
        nn.BatchNorm2d(12, momentum=None),
        nn.ReLU(),
        nn.AvgPool2d(4),
        nn.Flatten(),
        nn.Linear(48, len(CLASSES)),
    )
    batches = [labelled(64, seed) for seed in range(100, 120)]
    optimizer = torch.optim.Adam(module.parameters(), 0.01)
    for batch, labels in batches:
        optimizer.zero_grad()
        F.cross_entropy(module(normalised(batch)), torch.from_numpy(labels)).backward()
        optimizer.step()
    _measure_statistics(module, [normalised(batch) for batch, _ in batches])
    return module.eval()


def _measure_statistics(module: nn.Module, batches: list[torch.Tensor]) -> None:
    """Measure the BatchNorm statistics with the final weights: during training the weights still moved."""
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.reset_running_stats()
    with torch.no_grad():
        for batch in batches:
            module(batch)
