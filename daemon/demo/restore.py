"""The same few pictures clean, drifted and restored, and what the network takes each for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import nn

from daemon.demo.ledger import PHASES
from daemon.demo.material import Material
from daemon.demo.picture import Row
from daemon.demo.show import percent
from daemon.model.preprocess import Preprocessor
from daemon.simulation.drifts import Drift
from deploy.model.card import ModelCard
from deploy.model.frozen import load_frozen
from deploy.store.artefacts import ArtefactStore

COLUMNS = 8
TITLES = ("clean", "drifted", "restored")


def picture_rows(
    model: Path,
    state: Path,
    sensor: str,
    material: Material,
    drift: Drift,
    accuracies: dict[str, float | None],
) -> list[Row]:
    """One row each; without a fitted homogenizer in the state directory there is no restored one."""
    frozen = load_frozen(model)
    chosen = choose(material.labels)
    clean, labels = material.images[chosen], material.labels[chosen]
    drifted = np.stack([drift(image) for image in clean])
    batches = [Preprocessor(frozen.card).normalise(images) for images in (clean, drifted)]
    shown = [clean, drifted]
    _, artefact, _ = ArtefactStore(state).load_current(sensor, frozen.digest)
    if artefact is not None:
        batches.append(forward(artefact.homogenizer, batches[1]))
        shown.append(to_images(batches[2], frozen.card))
    rows = []
    for title, phase, images, batch in zip(TITLES, PHASES, shown, batches, strict=False):
        named = forward(frozen.module, batch).argmax(axis=1)
        names = [material.network.classes[index] for index in named]
        note = f"{percent(accuracies[phase])} right"
        rows.append(Row(title, note, images, names, (named == labels).tolist()))
    return rows


def choose(labels: np.ndarray) -> list[int]:
    """The first picture of each class, as far as there are columns: not picked for how they come out."""
    return [int(np.argmax(labels == label)) for label in np.unique(labels)[:COLUMNS]]


def forward(module: nn.Module, batch: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return module(torch.from_numpy(batch)).numpy()


def to_images(batch: np.ndarray, card: ModelCard) -> np.ndarray:
    """Undo the normalisation: (N, 3, H, W) float32 to (N, H, W, 3) uint8."""
    mean, std = np.asarray(card.normalisation.mean), np.asarray(card.normalisation.std)
    levels = 255 * (batch.transpose(0, 2, 3, 1) * std + mean)
    return np.rint(levels.clip(0, 255)).astype(np.uint8)
