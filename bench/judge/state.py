"""Keep fits and evidence, so that a stopped run can go on and another rule of the judge takes minutes."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save

from bench.state_file import append_line, read_lines
from calibrate.homogenizer import Homogenizer
from calibrate.judge import Evidence
from calibrate.scoring.accuracy import AccuracyProxy
from deploy.files import write_atomically

Record = dict[str, Any]


class State:
    """Homogenizers and records by key, in a folder; without a folder, in memory."""

    def __init__(self, folder: Path | None):
        self._folder = folder
        self._lines = folder / "records.jsonl" if folder else None
        self._homogenizers: dict[str, Homogenizer] = {}
        self._records: dict[str, Record] = dict(read_lines(self._lines))

    def homogenizer(self, key: str, make: Callable[[], Homogenizer]) -> Homogenizer:
        """Return the homogenizer of this key; `make` is called only where none is kept."""
        if key not in self._homogenizers:
            self._homogenizers[key] = self._load_or_make(key, make)
        return self._homogenizers[key]

    def record(self, key: str, make: Callable[[], Record]) -> Record:
        """Return the record of this key; `make` is called only where none is kept."""
        if key not in self._records:
            self._records[key] = make()
            append_line(self._lines, [key, self._records[key]])
        return self._records[key]

    def _load_or_make(self, key: str, make: Callable[[], Homogenizer]) -> Homogenizer:
        if self._folder is None:
            return make()
        path = self._folder / f"{re.sub('[^a-z0-9]+', '-', key.lower())}.safetensors"
        if not path.exists():
            write_atomically(path, save({name: t.contiguous() for name, t in make().state_dict().items()}))
        return _homogenizer(load_file(path))


def _homogenizer(tensors: dict[str, torch.Tensor]) -> Homogenizer:
    _, channels, height, width = tensors["offset"].shape
    parts = {"defects": "defect_step" in tensors, "shading": "gain" in tensors}
    homogenizer = Homogenizer(channels, height, width, tensors["kernel"].shape[-1], **parts).requires_grad_(False)
    homogenizer.load_state_dict(tensors)
    return homogenizer.eval()


def to_record(evidence: Evidence) -> Record:
    """Convert evidence for JSON."""
    assert evidence.proxy and evidence.answers is not None  # the benches' networks are classifiers
    kept = {"score": evidence.score, "proxy": asdict(evidence.proxy), "answers": evidence.answers.tolist()}
    return kept | {"layers": evidence.layers, "label_shift": evidence.label_shift}


def from_record(record: Record) -> Evidence:
    """Convert evidence from JSON."""
    answers, proxy = torch.tensor(record["answers"]), AccuracyProxy(**record["proxy"])
    return Evidence(record["score"], proxy, answers, tuple(record["layers"]), record["label_shift"])
