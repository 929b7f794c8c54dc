"""The picture of the demo: the same images clean, drifted and restored, each with the class that the network names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch import nn

from daemon.demo.bookkeeping import PHASES
from daemon.demo.datasets import Dataset
from daemon.demo.display import percent
from daemon.model.preprocess import Preprocessor
from daemon.simulation.drifts import Drift
from deploy.model.card import ModelCard
from deploy.model.frozen import load_frozen
from deploy.store.artefacts import ArtefactStore

PICTURE_COLUMNS = 8
ROW_TITLES = ("clean", "drifted", "restored")  # in the order of PHASES

# Sizes in pixels, colours in RGB.
TILE_SIDE, TILE_GAP, PICTURE_MARGIN, CAPTION_HEIGHT, TITLE_WIDTH = 128, 12, 24, 30, 160
INK, FAINT_INK, RIGHT_COLOUR, WRONG_COLOUR = (40, 40, 40), (120, 120, 120), (30, 130, 50), (200, 30, 40)
FONT = cv2.FONT_HERSHEY_DUPLEX


class PictureRow(NamedTuple):
    """One row of the picture."""

    title: str
    note: str
    images: np.ndarray  # (N, H, W, 3) uint8 RGB
    names: Sequence[str]  # classes that the network names
    right: Sequence[bool]


def comparison_rows(
    model: Path,
    state: Path,
    sensor: str,
    dataset: Dataset,
    drift: Drift,
    accuracies: dict[str, float | None],
) -> list[PictureRow]:
    """Return a row for each phase; none for restored images when the state directory has no fitted homogenizer."""
    frozen = load_frozen(model)
    chosen = first_of_each_class(dataset.labels)
    clean, labels = dataset.images[chosen], dataset.labels[chosen]
    drifted = np.stack([drift(image) for image in clean])
    preprocessor = Preprocessor(frozen.card)
    images, batches = [clean, drifted], [preprocessor.normalise(clean), preprocessor.normalise(drifted)]
    _, artefact, _ = ArtefactStore(state).load_current(sensor, frozen.digest)
    if artefact is not None:
        batches.append(forward(artefact.homogenizer, batches[1]))
        images.append(to_images(batches[2], frozen.card))
    rows = []
    for title, phase, shown, batch in zip(ROW_TITLES, PHASES, images, batches, strict=False):
        predicted = forward(frozen.module, batch).argmax(axis=1)
        names = [dataset.network.classes[index] for index in predicted]
        note = f"{percent(accuracies[phase])} right"
        rows.append(PictureRow(title, note, shown, names, (predicted == labels).tolist()))
    return rows


def first_of_each_class(labels: np.ndarray) -> list[int]:
    """Return the index of the first image of each class, for as many classes as fit: not chosen for a good result."""
    return [int(np.argmax(labels == label)) for label in np.unique(labels)[:PICTURE_COLUMNS]]


def forward(module: nn.Module, batch: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return module(torch.from_numpy(batch)).numpy()


def to_images(batch: np.ndarray, card: ModelCard) -> np.ndarray:
    """Undo the normalisation: (N, 3, H, W) float32 to (N, H, W, 3) uint8."""
    mean, std = np.asarray(card.normalisation.mean), np.asarray(card.normalisation.std)
    levels = 255 * (batch.transpose(0, 2, 3, 1) * std + mean)
    return np.rint(levels.clip(0, 255)).astype(np.uint8)


def draw_picture(rows: Sequence[PictureRow]) -> bytes:
    """Draw the rows below each other; returns a PNG file."""
    columns = max(len(row.images) for row in rows)
    row_height = TILE_SIDE + CAPTION_HEIGHT + TILE_GAP
    width = 2 * PICTURE_MARGIN + TITLE_WIDTH + columns * (TILE_SIDE + TILE_GAP) - TILE_GAP
    height = 2 * PICTURE_MARGIN + len(rows) * row_height - TILE_GAP
    canvas = np.full((height, width, 3), 255, np.uint8)
    for number, row in enumerate(rows):
        _draw_row(canvas, row, PICTURE_MARGIN + number * row_height)
    done, png = cv2.imencode(".png", cv2.cvtColor(canvas, cv2.COLOR_RGB2BGR))
    assert done  # every image of 8 bits and three channels can be encoded
    return png.tobytes()


def _draw_row(canvas: np.ndarray, row: PictureRow, top: int) -> None:
    _write(canvas, row.title, (PICTURE_MARGIN, top + TILE_SIDE // 2), INK, 0.75)
    _write(canvas, row.note, (PICTURE_MARGIN, top + TILE_SIDE // 2 + 26), FAINT_INK, 0.5)
    for column, (image, name, right) in enumerate(zip(row.images, row.names, row.right, strict=True)):
        left = PICTURE_MARGIN + TITLE_WIDTH + column * (TILE_SIDE + TILE_GAP)
        tile = cv2.resize(image, (TILE_SIDE, TILE_SIDE), interpolation=cv2.INTER_NEAREST)  # shows every pixel
        canvas[top : top + TILE_SIDE, left : left + TILE_SIDE] = tile
        colour = RIGHT_COLOUR if right else WRONG_COLOUR
        text_width = cv2.getTextSize(name, FONT, 0.55, 1)[0][0]
        _write(canvas, name, (left + (TILE_SIDE - text_width) // 2, top + TILE_SIDE + 20), colour, 0.55)


def _write(canvas: np.ndarray, text: str, origin: tuple[int, int], colour: tuple[int, ...], scale: float) -> None:
    cv2.putText(canvas, text, origin, FONT, scale, colour, 1, cv2.LINE_AA)
