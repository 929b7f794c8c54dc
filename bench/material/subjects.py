"""Frozen networks with their images: what a method is measured on, and how clean it is without a drift."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from bench.material import training
from bench.material.architectures import CellNetwork, LightNetwork
from bench.material.cifar import LIMITS, lossless, network, normalise
from calibrate import Limits
from daemon.images import read_npz

TEST_IMAGES = 1024  # for the ground truth, where there are as many


class Labelled(NamedTuple):
    """Images (N, H, W[, 3]) uint8 and their labels (N,) int64."""

    images: np.ndarray
    labels: Tensor

    @staticmethod
    def of(arrays: dict[str, np.ndarray], prefix: str = "") -> Labelled:
        """Take images and labels from the arrays of a file."""
        return Labelled(arrays[f"{prefix}images"], torch.from_numpy(arrays[f"{prefix}labels"].astype(np.int64)))

    def split(self, count: int) -> tuple[Labelled, Labelled]:
        """Return the first so many, and the rest."""
        return Labelled(self.images[:count], self.labels[:count]), Labelled(self.images[count:], self.labels[count:])


class Subject(NamedTuple):
    """A frozen network and images that it was not trained on.

    scene: what a camera shows; its labels only choose the classes in view. test: for the ground truth.
    normalise: images (N, H, W[, 3]) uint8 to frames (N, C, H, W).
    """

    network: nn.Module
    limits: Limits
    normalise: Callable[[np.ndarray], Tensor]
    scene: Labelled
    test: Labelled

    @property
    def channels(self) -> int:
        """Colours of an image."""
        return len(self.limits.black)


def cifar10(data: Path) -> Subject:
    """Load CIFAR-10 and the published ResNet-20."""
    test, scene = Labelled(*lossless(data / "cifar10_test.npz")).split(TEST_IMAGES)
    return Subject(network(data, "resnet20"), LIMITS, normalise, scene, test)


def cifar10_light(data: Path) -> Subject:
    """Load CIFAR-10 and a published depthwise separable network."""
    test, scene = Labelled(*lossless(data / "cifar10_test.npz")).split(TEST_IMAGES)
    weights = data / "models" / "cifar10_light_dwconv.pth"
    return _subject(_published(LightNetwork(), weights), ((0.5,) * 3, (0.5,) * 3), scene, test)


def gtsrb(data: Path) -> Subject:
    """Load traffic signs and a ResNet-20, which is trained at the first call."""
    test, scene = Labelled.of(read_npz(data / "gtsrb_test.npz")).split(TEST_IMAGES)
    return _trained_subject("gtsrb", data, scene, test)


def mnist(data: Path) -> Subject:
    """Load digits and a ResNet-8, which is trained at the first call."""
    test, scene = Labelled.of(read_npz(data / "mnist_test.npz")).split(TEST_IMAGES)
    return _trained_subject("mnist-resnet8", data, scene, test)


def x_rays(data: Path) -> Subject:
    """Load X-rays of the chest and a network of three stages, which is trained at the first call."""
    arrays = read_npz(data / "pneumoniamnist.npz")
    train, validation, test = (Labelled.of(arrays, prefix) for prefix in ("train_", "val_", "test_"))
    _, rows = training.split({"labels": arrays["train_labels"]}, training.RECIPES["x-rays"].held_out)
    images = np.concatenate([validation.images, train.images[rows]])
    scene = Labelled(images, torch.cat([validation.labels, train.labels[rows]]))
    return _trained_subject("x-rays", data, scene, test)


def blood_cells(data: Path) -> Subject:
    """Load blood cells and the network of the data folder; half of the images are for the ground truth."""
    images = Labelled.of(read_npz(data / "wbc_camera_source.npz"), "test_")
    test, scene = images.split(len(images.labels) // 4)
    weights = data / "models" / "wbc_resnet.pth"
    moments = ((0.8, 0.7, 0.68), (0.18, 0.2, 0.12))
    return _subject(_published(CellNetwork(), weights), moments, scene, test)


SUBJECTS = {
    "CIFAR-10": cifar10,
    "CIFAR-10, light": cifar10_light,
    "GTSRB": gtsrb,
    "MNIST": mnist,
    "X-rays": x_rays,
    "blood cells": blood_cells,
}

Moments = tuple[tuple[float, ...], tuple[float, ...]]  # mean and standard deviation of each channel


def _published(module: nn.Module, weights: Path) -> nn.Module:
    module.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    return module.eval().requires_grad_(False)


def _trained_subject(name: str, data: Path, scene: Labelled, test: Labelled) -> Subject:
    module, mean, std = training.trained(name, data)
    return _subject(module, (mean, std), scene, test)


def _subject(module: nn.Module, moments: Moments, scene: Labelled, test: Labelled) -> Subject:
    mean, std = moments
    return Subject(module, Limits.of(mean, std), partial(training.normalise, mean=mean, std=std), scene, test)
