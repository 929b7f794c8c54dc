"""What the demo shows: digits with a network trained here once, or CIFAR-10 with a published ResNet-20."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import Progress
from safetensors.torch import save
from torch import nn

from daemon.demo import digits, networks
from daemon.demo.digits import DemoError, Split, make_splits
from daemon.demo.processes import Network
from daemon.images import load_images, read_npz
from deploy.files import write_atomically

CIFAR_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # the published weights expect these
DIGITS_MEAN, DIGITS_STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)  # of grey levels in 0..1
TRAIN_RENDERINGS, TEST_RENDERINGS = 12, 4  # images of each digit
EPOCHS, BATCH_SIZE, LEARNING_RATE, LABEL_SMOOTHING = 4, 128, 0.01, 0.05
TRAINING_SHIFT_PX = 2  # a training batch is moved by up to this: little, so that its statistics stay those of images
STATISTICS_BATCH_SIZE = 512
MIN_DIGITS_ACCURACY = 0.97  # on held-out digits; a demo with a worse network shows little

OnProgress = Callable[[float], None]  # gets the share that is done, 0 to 1


class Dataset(NamedTuple):
    """Images (N, 32, 32, 3) uint8 RGB that the network has never seen, their labels (N,), and the network."""

    title: str
    images: np.ndarray
    labels: np.ndarray
    network: Network


def cifar_dataset(data: Path) -> Dataset:
    """Load CIFAR-10 test images and ResNet-20, from `data`/cifar10_test.npz and `data`/models/.

    Raises DemoError when one of them is missing.
    """
    path, weights = data / "cifar10_test.npz", data / "models" / "resnet20-12fca82f.th"
    if not weights.exists():
        raise DemoError(f"{weights} is missing; --data takes the folder that holds models/{weights.name}")
    images, labels = load_images(path)
    lossless = read_npz(path).get("lossless")
    if labels is None or lossless is None:
        raise DemoError(f"{path}: must have the keys images, labels and lossless")
    network = Network("daemon.demo.networks:cifar_resnet20", weights, IMAGENET_MEAN, IMAGENET_STD, CIFAR_CLASSES)
    return Dataset("CIFAR-10", images[lossless], labels[lossless], network)


def digits_dataset(seed: int, console: Console) -> Dataset:
    """Render held-out digits, and take the network for them from the cache or train it now."""
    training, held_out = make_splits(seed, train_renderings=TRAIN_RENDERINGS, test_renderings=TEST_RENDERINGS)
    weights = weights_path(cache_folder(), seed)
    if not weights.exists():
        console.print(f"training the digit network, once; kept as {weights}", soft_wrap=True)
        with Progress(console=console, disable=not console.is_terminal, transient=True) as progress:
            task = progress.add_task("training", total=1.0)
            reached = train_and_save(
                weights, training, held_out, seed, lambda done: progress.update(task, completed=done)
            )
        console.print(f"{reached:.1%} right on digits it has not seen")
    classes = tuple(map(str, range(10)))
    network = Network("daemon.demo.networks:digits_resnet", weights, DIGITS_MEAN, DIGITS_STD, classes)
    return Dataset("handwritten digits", held_out.images, held_out.labels, network)


# ---- the digit network


def cache_folder(environ: Mapping[str, str] = os.environ) -> Path:
    """Return recald's folder in the user's cache (XDG base directory specification)."""
    base = environ.get("XDG_CACHE_HOME") or Path(environ.get("HOME", "~")).expanduser() / ".cache"
    return Path(base) / "recald"


def weights_path(cache: Path, seed: int) -> Path:
    """Return the file of the weights for this seed, this code and this torch; any change is another file."""
    sources = [Path(file).read_bytes() for file in (digits.__file__, networks.__file__, __file__)]
    key = hashlib.sha256(b"\0".join([*sources, torch.__version__.encode(), str(seed).encode()]))
    return cache / f"digits-{key.hexdigest()[:16]}.safetensors"


def train_and_save(path: Path, train: Split, test: Split, seed: int, on_progress: OnProgress) -> float:
    """Train, check on the held-out digits and write the weights; returns the accuracy there.

    Raises DemoError when the network is not good enough.
    """
    network = train_network(train, seed, on_progress)
    reached = accuracy(network, test)
    if reached < MIN_DIGITS_ACCURACY:
        raise DemoError(f"the digit network reached {reached:.1%} only; run again with another --seed")
    write_atomically(path, save(network.state_dict()))
    return reached


def train_network(split: Split, seed: int, on_progress: OnProgress) -> nn.Module:
    """Train from scratch, on one thread: the same seed gives the same network, however many cores there are."""
    with single_thread():
        network = new_network(seed)
        rng = np.random.default_rng(seed)
        order = np.concatenate([rng.permutation(len(split.labels)) for _ in range(EPOCHS)])
        batches = np.array_split(order, max(1, len(order) // BATCH_SIZE))
        optimizer = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, weight_decay=0.01)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=len(batches))
        for step, rows in enumerate(batches, start=1):
            shift = rng.integers(-TRAINING_SHIFT_PX, TRAINING_SHIFT_PX + 1, 2)
            images = normalise_digits(np.roll(split.images[rows], shift, axis=(1, 2)))
            labels = torch.from_numpy(split.labels[rows])
            optimizer.zero_grad()
            F.cross_entropy(network(images), labels, label_smoothing=LABEL_SMOOTHING).backward()
            optimizer.step()
            schedule.step()
            on_progress(step / len(batches))
        estimate_statistics(network, split.images)
    return network.eval()


@contextmanager
def single_thread() -> Iterator[None]:
    """Let torch compute with one thread inside of the context."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def new_network(seed: int) -> nn.Module:
    """Build the untrained network, without changing torch's own random state."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return networks.digits_resnet()


def estimate_statistics(network: nn.Module, images: np.ndarray) -> None:
    """Set the BatchNorm running statistics to the plain average over the images, for the final weights.

    The statistics that training leaves mix the networks of its last steps.
    """
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.reset_running_stats()
            layer.momentum = None  # cumulative average
    network.train()
    with torch.no_grad():
        for rows in np.array_split(np.arange(len(images)), max(1, len(images) // STATISTICS_BATCH_SIZE)):
            network(normalise_digits(images[rows]))


def accuracy(network: nn.Module, split: Split) -> float:
    """Return the share of the images that the network, in evaluation mode, classifies right."""
    with torch.no_grad():
        parts = np.array_split(split.images, max(1, len(split.images) // STATISTICS_BATCH_SIZE))
        predicted = torch.cat([network(normalise_digits(part)).argmax(dim=1) for part in parts])
    return float((predicted.numpy() == split.labels).mean())


def normalise_digits(images: np.ndarray) -> torch.Tensor:
    """Convert (N, H, W, 3) uint8 to the network's input, (N, 3, H, W) float32."""
    values = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    return (values - torch.tensor(DIGITS_MEAN).view(3, 1, 1)) / torch.tensor(DIGITS_STD).view(3, 1, 1)
