"""One camera with one view, and what becomes of candidates there: evidence, decision and ground truth."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bench.judge.cameras import DriftedCamera, View
from bench.judge.candidates import REPLICATE, Candidate, Fits
from bench.judge.decision import FACTORY, answer_without_fit, decide
from bench.judge.ground_truth import compare
from bench.judge.state import State, from_record, to_record
from calibrate import CleanData, tap
from calibrate.judge import Evidence, collect_evidence
from calibrate.scoring.scorer import Scorer
from calibrate.source.description import frame_shape

TEST_BATCH = 256

Row = dict[str, Any]


class Situation:
    """A camera that shows a view, with what is known of clean frames."""

    def __init__(self, camera: DriftedCamera, view: View, fits: Fits, state: State, clean: CleanData | None = None):
        self._camera, self._view, self._fits, self._state = camera, view, fits, state
        self._mode = "commissioned" if clean else "shipped"
        subject, frames = camera.subject, camera.film(view.held_out[:1])
        self._scorer = Scorer.of(tap(subject.network), frame_shape(frames), subject.limits, clean)
        self._frames = [camera.film(rows) for rows in (view.held_out, *view.looks)]
        self._all_frames = camera.film(np.concatenate((view.fitted, view.replicated, view.held_out)))
        self._homogenizers: dict[str, nn.Module | None] = {FACTORY: None}

    def answer(self, active: str | None) -> str | None:
        """Return the worker's answer where it fits nothing."""
        return answer_without_fit(self._examine, active)

    def rows(self, candidates: Sequence[Candidate], active: Candidate | None) -> Iterator[Row]:
        """Yield a row for each candidate while `active` serves; one with the worker's answer where it fits nothing."""
        serving = active.name if active else None
        self._homogenizers |= {known.name: known.homogenizer for known in (*candidates, active) if known}
        situation = {"data": self._camera.data, "seed": self._camera.seed, "drift": self._camera.text}
        situation |= {"camera": "drifted" if self._camera.text else "clean"}
        situation |= {"view": self._view.name, "mode": self._mode, "active": serving or FACTORY}
        answer = self.answer(serving)
        if answer is not None or not candidates:
            yield situation | {"answer": answer}
            return
        self._homogenizers[REPLICATE] = self._fits.replicate(self._view)
        for candidate in candidates:
            if candidate.name != serving:
                yield situation | self._verdict(candidate, serving)

    def _verdict(self, candidate: Candidate, active: str | None) -> Row:
        incumbent = max(self._accuracy(name) for name in {FACTORY, active or FACTORY})
        accuracy = self._accuracy(candidate.name)
        row: Row = {"kind": candidate.kind, "candidate": candidate.name, "accuracy": accuracy, "incumbent": incumbent}
        row |= {"clean": self._clean_accuracy(), "truth": compare(accuracy, incumbent)}
        return row | vars(decide(self._examine, self._answers, candidate.name, REPLICATE, active))

    def _examine(self, name: str, part: int) -> Evidence:
        """Return the evidence for a homogenizer on a part of the window: 0 is held out, the others are looks."""

        def compute() -> Row:
            return to_record(collect_evidence(self._scorer, self._homogenizers[name], self._frames[part]))

        return from_record(self._state.record(f"{self._key(name)}, {part}", compute))

    def _answers(self, name: str) -> Tensor:
        """Return what the network says of all frames of a fit behind a homogenizer."""

        def compute() -> Row:
            return {"answers": self._scorer.answers(self._all_frames, self._homogenizers[name]).tolist()}

        return torch.tensor(self._state.record(f"{self._key(name)}, all", compute)["answers"])

    def _accuracy(self, name: str) -> float:
        """Return the accuracy on the test images in percent."""

        def compute() -> Row:
            return {"accuracy": self._measure_accuracy(self._homogenizers[name], self._camera.test)}

        return float(self._state.record(f"{self._key(name)}, test", compute)["accuracy"])

    def _clean_accuracy(self) -> float:
        def compute() -> Row:
            return {"accuracy": self._measure_accuracy(None, self._camera.clean.test)}

        return float(self._state.record(f"{self._camera.data}, clean, test", compute)["accuracy"])

    def _measure_accuracy(self, homogenizer: nn.Module | None, frames: Tensor) -> float:
        subject = self._camera.subject
        with torch.no_grad():
            parts = [homogenizer(part) if homogenizer else part for part in frames.split(TEST_BATCH)]
            named = torch.cat([subject.network(part).argmax(1) for part in parts])
        return 100 * float((named == subject.test.labels).float().mean())

    def _key(self, name: str) -> str:
        return f"{self._camera.name}, {self._view.name}, {self._mode}, {name}"
