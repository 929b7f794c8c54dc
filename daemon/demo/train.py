"""Train the demo's digit network once, on the CPU, and keep its weights in a cache folder."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save
from torch import nn

from daemon.demo import digits, networks
from daemon.demo.digits import DemoError, Split, make_splits
from deploy.files import write_atomically

MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)  # of the network's input, for grey levels in 0..1
TRAIN_RENDERINGS, TEST_RENDERINGS = 12, 4  # pictures of each digit
EPOCHS, BATCH, LEARNING_RATE, SMOOTHING = 4, 128, 0.01, 0.05
MAX_SHIFT = 2  # pixels a training batch is moved by: mild, so that the statistics stay those of real pictures
STATISTICS_BATCH = 512
REQUIRED_ACCURACY = 0.97  # on held-out digits; a worse network would make a poor demo of anything

Progress = Callable[[float], None]  # told the share that is done, 0 to 1


def splits(seed: int) -> tuple[Split, Split]:
    """The pictures to train on and those that the demo's cameras show."""
    return make_splits(seed, train_renderings=TRAIN_RENDERINGS, test_renderings=TEST_RENDERINGS)


def cache_folder(environ: Mapping[str, str] = os.environ) -> Path:
    base = environ.get("XDG_CACHE_HOME") or Path(environ.get("HOME", "~")).expanduser() / ".cache"
    return Path(base) / "recald"


def weights_path(cache: Path, seed: int) -> Path:
    """Where the weights for this seed, this code and this torch are kept; any change is another file."""
    sources = [Path(file).read_bytes() for file in (digits.__file__, networks.__file__, __file__)]
    key = hashlib.sha256(b"\0".join([*sources, torch.__version__.encode(), str(seed).encode()]))
    return cache / f"digits-{key.hexdigest()[:16]}.safetensors"


def train_and_keep(path: Path, train: Split, test: Split, seed: int, progress: Progress) -> float:
    """Train, check on the held-out digits and write the weights; returns the accuracy there."""
    network = train_network(train, seed, progress)
    reached = accuracy(network, test)
    if reached < REQUIRED_ACCURACY:
        raise DemoError(f"the digit network reached {reached:.1%} only; run again with another --seed")
    write_atomically(path, save(network.state_dict()))
    return reached


def train_network(split: Split, seed: int, progress: Progress) -> nn.Module:
    """Train from scratch, on one thread: the same network for the same seed, however many cores there are."""
    with one_thread():
        network = new_network(seed)
        rng = np.random.default_rng(seed)
        order = np.concatenate([rng.permutation(len(split.labels)) for _ in range(EPOCHS)])
        batches = np.array_split(order, max(1, len(order) // BATCH))
        optimizer = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, weight_decay=0.01)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=len(batches))
        for step, rows in enumerate(batches, start=1):
            shift = rng.integers(-MAX_SHIFT, MAX_SHIFT + 1, 2)
            images = normalise(np.roll(split.images[rows], shift, axis=(1, 2)))
            labels = torch.from_numpy(split.labels[rows])
            optimizer.zero_grad()
            F.cross_entropy(network(images), labels, label_smoothing=SMOOTHING).backward()
            optimizer.step()
            schedule.step()
            progress(step / len(batches))
        estimate_statistics(network, split.images)
    return network.eval()


@contextmanager
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def new_network(seed: int) -> nn.Module:
    """The network with weights as they are before training, without touching torch's own random state."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return networks.digits_resnet()


def estimate_statistics(network: nn.Module, images: np.ndarray) -> None:
    """Set the BatchNorm running statistics to the plain average over the images, for the final weights.

    Those that training leaves behind lag: they mix the networks of its last steps.
    """
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.reset_running_stats()
            layer.momentum = None  # cumulative average
    network.train()
    with torch.no_grad():
        for rows in np.array_split(np.arange(len(images)), max(1, len(images) // STATISTICS_BATCH)):
            network(normalise(images[rows]))


def accuracy(network: nn.Module, split: Split) -> float:
    """Share of the pictures that the network, in evaluation mode, names right."""
    with torch.no_grad():
        parts = np.array_split(split.images, max(1, len(split.images) // STATISTICS_BATCH))
        named = torch.cat([network(normalise(part)).argmax(dim=1) for part in parts])
    return float((named.numpy() == split.labels).mean())


def normalise(images: np.ndarray) -> torch.Tensor:
    """(N, H, W, 3) uint8 to (N, 3, H, W) float32 as the network takes it."""
    values = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    return (values - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
