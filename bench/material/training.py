"""Networks for data sets without a published one: trained once, on one core, and kept in the cache folder."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from safetensors.torch import load_file, save
from torch import Tensor, nn

from bench.material import architectures
from bench.material.architectures import XrayNetwork
from bench.provenance import normalised_statements
from daemon.demo import networks
from daemon.demo.datasets import cache_folder, single_thread
from daemon.images import read_npz
from deploy.files import write_atomically

SEED = 0
BATCH = 64
LEARNING_RATE, MOMENTUM, WEIGHT_DECAY = 0.1, 0.9, 5e-4  # SGD, as the CIFAR ResNets are trained
ADAM_RATE = 4e-3  # AdamW, as data/README.md says of the X-ray network
HELD_OUT_SHARE = 0.1  # of the training images; training reads them nowhere
MAX_TRACKS = 1000  # of a class; more than any class has


def _sgd(network: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(network.parameters(), LEARNING_RATE, MOMENTUM, weight_decay=WEIGHT_DECAY, nesterov=True)


def _adamw(network: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(network.parameters(), ADAM_RATE)


class Recipe(NamedTuple):
    """How a network is trained, on random crops of frames padded with black."""

    data: str  # file with images (N, H, W[, 3]), labels and, optionally, the track of each physical sign
    build: Callable[[], nn.Module]
    images: int  # the first so many of the file
    epochs: int
    padding: int  # pixels of black on each side; 0: no crops
    required: float  # least accuracy on the held-out images, a share
    prefix: str = ""  # of the keys of images and labels
    optimizer: Callable[[nn.Module], torch.optim.Optimizer] = _sgd
    held_out: float = HELD_OUT_SHARE


RECIPES = {
    "gtsrb": Recipe("gtsrb_train.npz", partial(networks.ResNet, 3, classes=43), 3920, 20, padding=4, required=0.9),
    "mnist-resnet20": Recipe(
        "mnist_train.npz", partial(networks.ResNet, 3, channels=1), 20_000, 2, padding=0, required=0.985
    ),
    "mnist-resnet8": Recipe(
        "mnist_train.npz", partial(networks.ResNet, 1, channels=1), 20_000, 3, padding=0, required=0.98
    ),
    "x-rays": Recipe(
        data="pneumoniamnist.npz",
        build=XrayNetwork,
        images=4708,
        epochs=8,
        padding=0,
        required=0.93,
        prefix="train_",
        optimizer=_adamw,
        held_out=0.4,  # for the frames of a camera, since the validation images are few
    ),
}


class TrainingError(RuntimeError):
    """A trained network is less accurate than its recipe requires."""


class Trained(NamedTuple):
    """A network in evaluation mode without gradients, for inputs (value / 255 - mean) / std; one value a channel."""

    network: nn.Module
    mean: tuple[float, ...]
    std: tuple[float, ...]


def trained(name: str, data: Path) -> Trained:
    """Return the network of this name in RECIPES, from the cache or trained now on files in the folder `data`.

    Raises TrainingError where the trained network is not accurate enough.
    """
    recipe = RECIPES[name]
    source = data / recipe.data
    arrays = _training_arrays(recipe, source)
    mean, std = moments(arrays["images"])
    weights = weights_path(name, source)
    if not weights.exists():
        used = {key: array[: recipe.images] for key, array in arrays.items()}
        _train_and_keep(name, weights, used, Trained(_network(recipe), mean, std))
    network = _network(recipe)
    network.load_state_dict(load_file(weights))
    return Trained(network.eval().requires_grad_(False), mean, std)


def _training_arrays(recipe: Recipe, source: Path) -> dict[str, np.ndarray]:
    """Read images, labels and tracks, without the prefix of their keys."""
    arrays = read_npz(source)
    return {key.removeprefix(recipe.prefix): array for key, array in arrays.items() if key.startswith(recipe.prefix)}


def weights_path(name: str, source: Path) -> Path:
    """Return where the weights for these images, this code and this torch are kept.

    Reworded comments and docstrings keep the file; after any other change of the code it is another one.
    """
    files = (networks.__file__, architectures.__file__, __file__)
    code = [statement for file in files for statement in normalised_statements(file)]
    parts = [*code, torch.__version__, str(SEED)]
    key = hashlib.sha256("\0".join(parts).encode() + source.read_bytes())
    return cache_folder() / f"{name}-{key.hexdigest()[:16]}.safetensors"


def moments(images: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation of each channel of (N, H, W[, C]) uint8, for grey levels in 0..1."""
    pixels = images.reshape(-1, images.shape[3] if images.ndim == 4 else 1)
    counts = np.stack([np.bincount(channel, minlength=256) for channel in pixels.T])  # exact, and no float copy
    share, levels = counts / len(pixels), np.arange(256) / 255
    mean = share @ levels
    std = np.sqrt(share @ levels**2 - mean**2)
    return tuple(mean.tolist()), tuple(std.tolist())


def normalise(images: np.ndarray, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """Convert (N, H, W[, C]) uint8 to normalised (N, C, H, W) float32."""
    frames = torch.from_numpy(images if images.ndim == 4 else images[..., None]) / 255
    return ((frames - torch.tensor(mean)) / torch.tensor(std)).permute(0, 3, 1, 2).contiguous()


def split(arrays: dict[str, np.ndarray], share: float = HELD_OUT_SHARE) -> tuple[np.ndarray, np.ndarray]:
    """Return rows to train on and rows held out; all images of one physical sign are in the same part."""
    labels = arrays["labels"].astype(np.int64)
    groups = labels * MAX_TRACKS + arrays["track"] if "track" in arrays else np.arange(len(labels))
    names = np.random.default_rng(SEED).permutation(np.unique(groups))
    held_out = np.isin(groups, names[: round(share * len(names))])
    return np.flatnonzero(~held_out), np.flatnonzero(held_out)


def padded_crops(images: np.ndarray, padding: int, rng: np.random.Generator) -> np.ndarray:
    """Pad each image (N, H, W[, C]) with black and crop it to its size at a random place."""
    height, width = images.shape[1:3]
    sides = ((0, 0), (padding, padding), (padding, padding), (0, 0))[: images.ndim]
    top, left = rng.integers(0, 2 * padding + 1, (2, len(images), 1, 1))
    rows, columns = top + np.arange(height)[:, None], left + np.arange(width)
    cut: np.ndarray = np.pad(images, sides)[np.arange(len(images))[:, None, None], rows, columns]
    return cut


def accuracy(net: Trained, images: np.ndarray, labels: np.ndarray) -> float:
    """Return the accuracy on images (N, H, W[, C]) uint8, as a share."""
    parts = np.array_split(images, max(1, len(images) // 256))
    with torch.no_grad():
        named = torch.cat([net.network(normalise(part, net.mean, net.std)).argmax(1) for part in parts])
    return float((named.numpy() == labels).mean())


def _network(recipe: Recipe) -> nn.Module:
    """Build the network with its initial weights; torch's own random state stays as it is."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        return recipe.build()


def _train_and_keep(name: str, weights: Path, arrays: dict[str, np.ndarray], net: Trained) -> None:
    images, labels = arrays["images"], arrays["labels"]
    training, held_out = split(arrays, RECIPES[name].held_out)
    console = Console(stderr=True)
    console.print(f"training {name}, once; kept as {weights}", soft_wrap=True)
    with single_thread():
        _train(net, RECIPES[name], images[training], labels[training], _bar(console))
        reached = accuracy(net, images[held_out], labels[held_out])
    console.print(f"{name}: accuracy {reached:.2%} on {len(held_out)} held-out images")
    if reached < RECIPES[name].required:
        raise TrainingError(f"{name} reached {reached:.2%}, {RECIPES[name].required:.1%} are required")
    write_atomically(weights, save(net.network.state_dict()))


def _bar(console: Console) -> Callable[[int], Iterator[int]]:
    """Return a function like `range` that shows a progress bar on a terminal."""

    def steps(total: int) -> Iterator[int]:
        columns = (TextColumn("step {task.completed:.0f} of {task.total:.0f}"), BarColumn(), TimeElapsedColumn())
        with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as progress:
            yield from progress.track(range(total))

    return steps


def _train(
    net: Trained, recipe: Recipe, images: np.ndarray, labels: np.ndarray, steps: Callable[[int], Iterator[int]]
) -> None:
    """Train by SGD with one cycle of the rate; BatchNorm keeps its usual moving averages of the augmented batches."""
    rng = np.random.default_rng(SEED)
    order = np.concatenate([rng.permutation(len(labels)) for _ in range(recipe.epochs)])
    batches = np.array_split(order, len(order) // BATCH)
    optimizer = recipe.optimizer(net.network)
    highest_rate = optimizer.param_groups[0]["lr"]
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, highest_rate, total_steps=len(batches))
    targets = torch.from_numpy(labels.astype(np.int64))
    net.network.train()
    for step in steps(len(batches)):
        rows = batches[step]
        frames = normalise(padded_crops(images[rows], recipe.padding, rng), net.mean, net.std)
        optimizer.zero_grad()
        F.cross_entropy(net.network(frames), targets[rows]).backward()
        optimizer.step()
        schedule.step()
    net.network.eval()
