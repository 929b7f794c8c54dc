"""Images, networks, feature maps and target statistics for the tables of Willis & Oala (2021)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from bench.material import training
from bench.material.cifar import WEIGHTS, lossless, network, normalise
from bench.material.perturbation import KAPPA
from calibrate import FeatureStatistics, Taps
from calibrate.features.class_statistics import ClassStatistics, collect_statistics
from calibrate.features.feature_maps import (
    FeatureMap,
    LastLayer,
    all_layers,
    penultimate,
    random_network,
    random_projection,
    with_logits,
)
from daemon.demo.datasets import CIFAR_CLASSES, IMAGENET_MEAN, IMAGENET_STD
from daemon.images import read_npz

FRAMES, VALIDATION_IMAGES, SOURCE_IMAGES = 512, 1024, 4096
KAPPAS = {"cifar10": KAPPA, "mnist": 0.3}  # the paper's strengths of the perturbation
RANDOM_SEED = 0  # of the random network and the random projection: one for all perturbations, as in the paper
VERIFIER = "resnet32"  # on CIFAR-10
NETWORKS = tuple(name for name in WEIGHTS if name != VERIFIER)  # that can be Φ on CIFAR-10

SUPERVISED = ("CRITERION", "NN", "NN CC", "NN ALL", "NN ALL CC", "RANDOM NN", "RANDOM NN CC", "RP", "RP CC")
ROWS = {"supervised": SUPERVISED, "unsupervised": ("NN", "NN ALL", "RANDOM NN", "RP")}

Target = FeatureStatistics | ClassStatistics


class Labelled(NamedTuple):
    """Frames with labels."""

    frames: Tensor  # (N, C, H, W) normalised
    labels: Tensor  # (N,)


class DataSet(NamedTuple):
    """Images with their networks: source is the paper's A, fitted is B and validation is C."""

    model: nn.Module
    verifier: nn.Module
    mean: tuple[float, ...]
    std: tuple[float, ...]
    classes: tuple[str, ...]
    kappa: float
    source: Labelled
    fitted: Labelled
    validation: Labelled

    @property
    def shape(self) -> tuple[int, int, int]:
        _, channels, height, width = self.fitted.frames.shape
        return channels, height, width


def feature_map(data_set: DataSet, row: str, supervised: bool) -> FeatureMap:
    """Return the features whose statistics a row of the tables matches, with Φ's logits where labels are used."""
    maps: dict[str, Callable[[], FeatureMap]] = {
        "CRITERION": lambda: penultimate(data_set.model),
        "NN": lambda: penultimate(data_set.model),
        "NN ALL": lambda: all_layers(data_set.model),
        "RANDOM NN": lambda: random_network(data_set.model, RANDOM_SEED, data_set.source.frames),
        "RP": lambda: random_projection(data_set.shape, seed=RANDOM_SEED),
    }
    features = maps[row.removesuffix(" CC")]()
    return with_logits(features, data_set.model) if supervised and row.startswith("R") else features


def target_statistics(data_set: DataSet, row: str, features: FeatureMap, shipped: bool) -> Target:
    """Return the statistics of clean source images, as in the paper, or those shipped in Φ."""
    if shipped:
        assert isinstance(features, (Taps, LastLayer)), f"nothing is shipped for {row}"
        return features.reference
    if row.endswith(" CC"):
        return collect_statistics(features, *data_set.source)
    return collect_statistics(features, data_set.source.frames)


def _cifar10(data: Path, name: str) -> DataSet:
    def labelled(file: str, count: int) -> Labelled:
        images = lossless(data / file)
        return Labelled(normalise(images.pictures[:count]), images.labels[:count])

    return DataSet(
        model=network(data, name),
        verifier=network(data, VERIFIER),
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        classes=CIFAR_CLASSES,
        kappa=KAPPAS["cifar10"],
        source=labelled("cifar10_train_1.npz", SOURCE_IMAGES),
        fitted=labelled("cifar10_train_0.npz", FRAMES),
        validation=labelled("cifar10_test.npz", VALIDATION_IMAGES),
    )


def _mnist(data: Path, _: str) -> DataSet:
    model, mean, std = training.trained("mnist-resnet20", data)

    def labelled(file: str, first: int, count: int) -> Labelled:
        arrays = {key: array[first : first + count] for key, array in read_npz(data / file).items()}
        labels = torch.from_numpy(arrays["labels"].astype(np.int64))
        return Labelled(training.normalise(arrays["images"], mean, std), labels)

    return DataSet(
        model=model,
        verifier=training.trained("mnist-resnet8", data).network,
        mean=mean,
        std=std,
        classes=tuple(map(str, range(10))),
        kappa=KAPPAS["mnist"],
        source=labelled("mnist_train.npz", FRAMES, SOURCE_IMAGES),
        fitted=labelled("mnist_train.npz", 0, FRAMES),
        validation=labelled("mnist_test.npz", 0, VALIDATION_IMAGES),
    )


DATASETS: dict[str, Callable[[Path, str], DataSet]] = {"cifar10": _cifar10, "mnist": _mnist}
