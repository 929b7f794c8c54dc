"""What the judge's bench has computed so far, so that a run that was stopped goes on and another rule costs little."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save

from calibrate.homogenizer import Homogenizer
from calibrate.judge import Evidence
from calibrate.scoring.accuracy import AccuracyProxy, Answers
from deploy.files import write_atomically

Record = dict[str, Any]


class State:
    """Homogenizers and records by key, in a folder; without one, in memory."""

    def __init__(self, folder: Path | None):
        self._folder = folder
        self._homogenizers: dict[str, Homogenizer] = {}
        self._records = dict(_read(self._lines)) if folder else {}

    @property
    def _lines(self) -> Path:
        assert self._folder is not None
        return self._folder / "records.jsonl"

    def homogenizer(self, key: str, make: Callable[[], Homogenizer]) -> Homogenizer:
        if key not in self._homogenizers:
            self._homogenizers[key] = self._load_or_make(key, make)
        return self._homogenizers[key]

    def record(self, key: str, make: Callable[[], Record]) -> Record:
        if key not in self._records:
            self._records[key] = make()
            self._append(key, self._records[key])
        return self._records[key]

    def _load_or_make(self, key: str, make: Callable[[], Homogenizer]) -> Homogenizer:
        if self._folder is None:
            return make()
        path = self._folder / f"{re.sub('[^a-z0-9]+', '-', key.lower())}.safetensors"
        if not path.exists():
            write_atomically(path, save({name: t.contiguous() for name, t in make().state_dict().items()}))
        return _homogenizer(load_file(path))

    def _append(self, key: str, record: Record) -> None:
        if self._folder is not None:
            self._folder.mkdir(parents=True, exist_ok=True)
            with self._lines.open("a") as file:
                file.write(json.dumps([key, record]) + "\n")


def _homogenizer(tensors: dict[str, torch.Tensor]) -> Homogenizer:
    _, channels, height, width = tensors["offset"].shape
    homogenizer = Homogenizer(channels, height, width, tensors["kernel"].shape[-1]).requires_grad_(False)
    homogenizer.load_state_dict(tensors)
    return homogenizer.eval()


def _read(path: Path) -> list[tuple[str, Record]]:
    """The records of a file; a last line that was cut off in the middle is measured again."""
    if not path.exists():
        return []
    lines = path.read_text().split("\n")
    if lines[-1]:
        path.write_text("".join(f"{line}\n" for line in lines[:-1]))
    return [json.loads(line) for line in lines[:-1]]


def to_record(evidence: Evidence) -> Record:
    assert evidence.proxy and evidence.answers  # the benches' networks are classifiers
    answers = {"labels": evidence.answers.labels.tolist(), "log_odds": evidence.answers.log_odds.tolist()}
    return {"score": evidence.score, "proxy": asdict(evidence.proxy), "answers": answers}


def from_record(record: Record) -> Evidence:
    labels, log_odds = (torch.tensor(record["answers"][key]) for key in ("labels", "log_odds"))
    return Evidence(record["score"], AccuracyProxy(**record["proxy"]), Answers(labels, log_odds))
