"""The demo's picture: the same images clean, drifted and restored, each with what the network says it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np

TILE = 128  # pixels a side of an image in the picture
GAP, MARGIN, CAPTION, TITLE_WIDTH = 12, 24, 30, 160
INK, FAINT, RIGHT, WRONG = (40, 40, 40), (120, 120, 120), (30, 130, 50), (200, 30, 40)  # RGB
FONT = cv2.FONT_HERSHEY_DUPLEX


class Row(NamedTuple):
    """One line of the picture."""

    title: str
    note: str
    images: np.ndarray  # (N, H, W, 3) uint8 RGB
    names: Sequence[str]  # what the network says
    right: Sequence[bool]


def draw(rows: Sequence[Row]) -> bytes:
    """Return the picture as PNG."""
    columns = max(len(row.images) for row in rows)
    width = 2 * MARGIN + TITLE_WIDTH + columns * (TILE + GAP) - GAP
    height = 2 * MARGIN + len(rows) * (TILE + CAPTION + GAP) - GAP
    canvas = np.full((height, width, 3), 255, np.uint8)
    for number, row in enumerate(rows):
        _draw_row(canvas, row, MARGIN + number * (TILE + CAPTION + GAP))
    done, png = cv2.imencode(".png", cv2.cvtColor(canvas, cv2.COLOR_RGB2BGR))
    assert done  # an image of 8 bits and three channels always can be
    return png.tobytes()


def _draw_row(canvas: np.ndarray, row: Row, top: int) -> None:
    _write(canvas, row.title, (MARGIN, top + TILE // 2), INK, 0.75)
    _write(canvas, row.note, (MARGIN, top + TILE // 2 + 26), FAINT, 0.5)
    for column, (image, name, right) in enumerate(zip(row.images, row.names, row.right, strict=True)):
        left = MARGIN + TITLE_WIDTH + column * (TILE + GAP)
        tile = cv2.resize(image, (TILE, TILE), interpolation=cv2.INTER_NEAREST)  # the pixels as they are
        canvas[top : top + TILE, left : left + TILE] = tile
        colour = RIGHT if right else WRONG
        text_width = cv2.getTextSize(name, FONT, 0.55, 1)[0][0]
        _write(canvas, name, (left + (TILE - text_width) // 2, top + TILE + 20), colour, 0.55)


def _write(canvas: np.ndarray, text: str, origin: tuple[int, int], colour: tuple[int, ...], scale: float) -> None:
    cv2.putText(canvas, text, origin, FONT, scale, colour, 1, cv2.LINE_AA)
