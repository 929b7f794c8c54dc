"""The experiments of the tables of Willis & Oala (2021), by name, and the file of the finished ones.

One experiment is one fit. Files and results call it a `piece`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bench.state_file import append_line, read_lines

RHOS = ("paper", "ours")
METRICS = ("acc", "acc_val", "acc_ver", "psnr", "ssim", "l2")
IMAGES_OF_DRAW = 10  # the draw whose restored images are kept


class Experiment(NamedTuple):
    """One fit; where nothing is fitted, setting is "baseline" and rho "none"."""

    dataset: str
    setting: str
    row: str
    rho: str
    draw: int

    @property
    def supervised(self) -> bool:
        return self.setting == "supervised"

    @property
    def uses_shipped_statistics(self) -> bool:
        """Ours needs nothing but the model where the model has the statistics; the paper's uses source images."""
        return self.rho == "ours" and not self.supervised and self.row in ("NN", "NN ALL")

    @property
    def key(self) -> str:
        return "/".join(map(str, self))


class State:
    """Finished experiments, one JSON object a line, and next to the file a folder with some restored images."""

    def __init__(self, path: Path):
        self._path = path
        self._folder = path.with_name(f"{path.stem}-images")
        lines = (line for line in read_lines(path) if isinstance(line, dict))
        self._records = [line for line in lines if {"piece", "settings"} <= line.keys()]

    def find(self, experiment: Experiment, settings: dict[str, Any]) -> dict[str, Any] | None:
        """Return the latest record of this experiment with the same settings."""
        for record in reversed(self._records):
            if record["piece"] == experiment.key and record["settings"] == settings:
                return record
        return None

    def add(self, experiment: Experiment, record: dict[str, Any], images: dict[str, np.ndarray] | None) -> None:
        """Write a finished record, and its images where they are to be kept."""
        if images:
            self._folder.mkdir(parents=True, exist_ok=True)
            np.savez_compressed(self.images(experiment), **images)  # type: ignore[arg-type]
        append_line(self._path, record)
        self._records.append(record)

    def images(self, experiment: Experiment) -> Path:
        """Return where the restored images of this experiment are kept."""
        return self._folder / (experiment.key.replace("/", "-").replace(" ", "_") + ".npz")
