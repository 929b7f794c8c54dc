"""No bad homogenizer comes to serve, and most proper fits that help do: judge and shadow against labels."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bench.arguments import add_data
from bench.judge.cameras import (
    CHOOSING,
    FIT_FRAMES,
    JUDGE_FRAMES,
    REPORTED,
    SHADOW_FRAMES,
    SHADOW_WINDOWS,
    TEST_IMAGES,
    DriftedCamera,
    drifted_cameras,
)
from bench.judge.candidates import BAD_FIT, FIT, GOOD, OTHER, Candidate, candidates
from bench.judge.decision import BAND, FACTORY, Examine, answer_without_fit, decide
from bench.judge.ground_truth import LEVEL, best, compare, from_text, to_text
from bench.judge.state import State, from_record, to_record
from bench.judge.tables import show_tables, summarise
from bench.provenance import MATERIAL, METHOD
from calibrate import FitConfig, tap
from calibrate.judge import Evidence, collect_evidence
from calibrate.scoring.scorer import Scorer
from calibrate.source.description import frame_shape

CODE = (
    *(*METHOD, *MATERIAL, "daemon/recalibration/state_machine.py"),
    *("bench/fit.py", "bench/drifts.py", "bench/judge/*.py"),
)

QUICK_CAMERAS = 2

Row = dict[str, Any]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_data(parser, "CIFAR-10, GTSRB and networks")
    add = parser.add_argument
    add("--state", type=Path, help="folder for fits and evidence; what is there is not computed again")
    add("--choosing", action="store_true", help="the seeds for choosing rules, instead of those that are reported")
    add("--quick", action="store_true", help=f"only the first {QUICK_CAMERAS} cameras")


def measure(args: argparse.Namespace) -> dict[str, Any]:
    seeds = CHOOSING if args.choosing else REPORTED
    rows: list[Row] = []
    unfitted: list[Row] = []
    pairs = list(neighbours(list(drifted_cameras(seeds, args.data))))
    for camera, neighbour in pairs[: QUICK_CAMERAS if args.quick else None]:
        for row in VerdictsBehindCamera(camera, neighbour, State(args.state)).rows():
            (rows if "candidate" in row else unfitted).append(row)
        print(f"{camera.name}: {camera.text}, {len(rows)} verdicts", flush=True)
    summary = summarise(rows, unfitted)
    show_tables(summary)
    settings: Row = {"fit_frames": FIT_FRAMES, "judge_frames": JUDGE_FRAMES, "looks": SHADOW_WINDOWS}
    settings |= {"look_frames": SHADOW_FRAMES, "test_images": TEST_IMAGES, "band": BAND, "level": LEVEL}
    settings |= {"seeds": list(seeds), "fit": vars(FitConfig())}
    return {
        "seeds": {"camera": list(seeds)},
        "settings": settings,
        "rows": rows,
        "doors": unfitted,
        "summary": summary,
    }


def neighbours(cameras: Sequence[DriftedCamera]) -> Iterator[tuple[DriftedCamera, DriftedCamera]]:
    """Yield each camera with the next one in front of the same network."""
    for camera in cameras:
        same = [other for other in cameras if other.data == camera.data]
        yield camera, same[(same.index(camera) + 1) % len(same)]


class VerdictsBehindCamera:
    """Judges all candidates behind one camera in every situation."""

    def __init__(self, camera: DriftedCamera, neighbour: DriftedCamera, state: State):
        self._camera, self._neighbour, self._state = camera, neighbour, state
        network = camera.subject.network
        frames = camera.film(camera.fit_rows()[:1])
        self._scorer = Scorer.of(tap(network), frame_shape(frames), camera.subject.limits)
        self._window = lru_cache(maxsize=None)(camera.window)
        self._test = lru_cache(maxsize=None)(camera.test)
        self._homogenizers: dict[str, nn.Module | None] = {FACTORY: None}

    def rows(self) -> Iterator[Row]:
        """Yield a row for each verdict; where the worker fits nothing, a row with its answer and no candidate."""
        judged = list(candidates(self._camera, self._neighbour, self._state))
        self._homogenizers |= {candidate.name: candidate.homogenizer for candidate in judged}
        for clean in (False, True):
            for active in (None, FIT) if clean else (None, FIT, OTHER):
                for view in self._camera.views:
                    yield from self._situation(judged, clean, active, view)

    def _situation(self, judged: Sequence[Candidate], clean: bool, active: str | None, view: str) -> Iterator[Row]:
        situation = {"data": self._camera.data, "seed": self._camera.seed, "drift": self._camera.text}
        situation |= {"camera": "clean" if clean else "drifted", "active": active or FACTORY, "view": view}
        evidence = self._evidence(clean, view)
        answer = answer_without_fit(evidence, active)
        if answer is not None:
            yield situation | {"answer": answer}
            return
        all_kinds = not clean and view == self._camera.views[0]
        for candidate in judged:
            if candidate.name != active and (all_kinds or candidate.kind in (GOOD, BAD_FIT)):
                yield situation | self._verdict(candidate, evidence, clean, active)

    def _verdict(self, candidate: Candidate, evidence: Examine, clean: bool, active: str | None) -> Row:
        champion = best([self._right(name, clean) for name in {FACTORY, active or FACTORY}])
        right = self._right(candidate.name, clean)
        row: Row = {"kind": candidate.kind, "candidate": candidate.name}
        row |= {"accuracy": _percent(right), "incumbent": _percent(champion)} | compare(right, champion)._asdict()
        return row | vars(decide(evidence, candidate.name, active))

    def _evidence(self, clean: bool, view: str) -> Callable[[str, int], Evidence]:
        """Return a function from the name of a homogenizer and a part of the window to the evidence."""

        def evidence(name: str, part: int) -> Evidence:
            def compute() -> Row:
                return to_record(
                    collect_evidence(self._scorer, self._homogenizers[name], self._window(view, clean).parts[part])
                )

            return from_record(self._state.record(f"{self._key(name, clean)}, {view}, {part}", compute))

        return evidence

    def _right(self, name: str, clean: bool) -> Tensor:
        """Tell which of the test images are named right, (TEST_IMAGES,) bool."""

        def compute() -> Row:
            return {"right": to_text(self._named_right(self._homogenizers[name], self._test(clean)))}

        return from_text(self._state.record(f"{self._key(name, clean)}, test", compute)["right"])

    def _named_right(self, homogenizer: nn.Module | None, frames: Tensor) -> Tensor:
        network = self._camera.subject.network
        with torch.no_grad():
            parts = [network(homogenizer(part) if homogenizer else part).argmax(1) for part in frames.split(256)]
        return torch.cat(parts) == self._camera.subject.labels[:TEST_IMAGES]

    def _key(self, name: str, clean: bool) -> str:
        return f"{self._camera.name}, {name}{', clean' if clean else ''}"


def _percent(right: Tensor) -> float:
    return 100 * float(right.float().mean())
