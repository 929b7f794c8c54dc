"""What the demo shows: digits to a network trained on the spot, or CIFAR-10 to a published ResNet-20."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
from rich.console import Console
from rich.progress import Progress

from daemon.demo import train
from daemon.demo.digits import DemoError
from daemon.demo.service import Network
from daemon.images import load_images, read_npz

CIFAR_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # what its authors trained with


class Material(NamedTuple):
    """Pictures (N, 32, 32, 3) uint8 RGB that the network never saw, their labels (N,), and the network."""

    title: str
    images: np.ndarray
    labels: np.ndarray
    network: Network


def digits(seed: int, console: Console) -> Material:
    """Held-out digits, and the network for them: from the cache, or trained now."""
    training, held_out = train.splits(seed)
    weights = train.weights_path(train.cache_folder(), seed)
    if not weights.exists():
        console.print(f"training the digit network, once; kept as {weights}", soft_wrap=True)
        with Progress(console=console, disable=not console.is_terminal, transient=True) as progress:
            task = progress.add_task("training", total=1.0)
            reached = train.train_and_keep(
                weights, training, held_out, seed, lambda done: progress.update(task, completed=done)
            )
        console.print(f"{reached:.1%} right on digits it has not seen")
    network = Network("daemon.demo.networks:digits_resnet", weights, train.MEAN, train.STD, tuple(map(str, range(10))))
    return Material("handwritten digits", held_out.images, held_out.labels, network)


def cifar(data: Path) -> Material:
    """CIFAR-10 test images and ResNet-20, from `data`/cifar10_test.npz and `data`/models/."""
    path, weights = data / "cifar10_test.npz", data / "models" / "resnet20-12fca82f.th"
    if not weights.exists():
        raise DemoError(f"{weights} is not there; --data takes the folder that holds models/{weights.name}")
    images, labels = load_images(path)
    lossless = read_npz(path).get("lossless")
    if labels is None or lossless is None:
        raise DemoError(f"{path}: must have the keys images, labels and lossless")
    network = Network("daemon.demo.networks:cifar_resnet20", weights, IMAGENET_MEAN, IMAGENET_STD, CIFAR_CLASSES)
    return Material("CIFAR-10", images[lossless], labels[lossless], network)
