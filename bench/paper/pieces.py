"""The pieces that the tables of Willis & Oala (2021) are made of, by name, and the file of the finished ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

RHOS = ("paper", "ours")
METRICS = ("acc", "acc_val", "acc_ver", "psnr", "ssim", "l2")
IMAGES_OF = 10  # the draw whose restored images are kept


class Piece(NamedTuple):
    """What is measured at one time; setting is "baseline" and rho "none" where nothing is fitted."""

    dataset: str
    setting: str
    row: str
    rho: str
    draw: int

    @property
    def supervised(self) -> bool:
        return self.setting == "supervised"

    @property
    def aims_at_shipped(self) -> bool:
        """Ours needs nothing but the model where that has the statistics; the paper's always sees source images."""
        return self.rho == "ours" and not self.supervised and self.row in ("NN", "NN ALL")

    @property
    def key(self) -> str:
        return "/".join(map(str, self))


class State:
    """Finished pieces, one JSON object a line, and beside the file a folder with some of the restored images.

    A line that a crash has cut short is left out, and its piece is run again.
    """

    def __init__(self, path: Path):
        self._path = path
        self._folder = path.with_name(f"{path.stem}-images")
        text = path.read_text() if path.exists() else ""
        self._cut = bool(text) and not text.endswith("\n")
        self._records = [record for line in text.splitlines() if (record := _parsed(line)) is not None]

    def find(self, piece: Piece, settings: dict[str, Any]) -> dict[str, Any] | None:
        """The latest record of this piece under the same settings."""
        same = (r for r in reversed(self._records) if r["piece"] == piece.key and r["settings"] == settings)
        return next(same, None)

    def add(self, piece: Piece, record: dict[str, Any], images: dict[str, np.ndarray] | None) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        if images:
            self._folder.mkdir(exist_ok=True)
            np.savez_compressed(self.images(piece), **images)  # type: ignore[arg-type]
        with self._path.open("a") as file:
            file.write("\n" * self._cut + json.dumps(record) + "\n")
        self._cut = False
        self._records.append(record)

    def images(self, piece: Piece) -> Path:
        return self._folder / (piece.key.replace("/", "-").replace(" ", "_") + ".npz")


def _parsed(line: str) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) and {"piece", "settings"} <= record.keys() else None
