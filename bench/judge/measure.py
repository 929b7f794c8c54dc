"""How often bad homogenizers come to serve and good ones do not: the judge and the shadow against labels."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bench.judge.candidates import BAD_FIT, FIT, GOOD, OTHER, Candidate, candidates
from bench.judge.gate import BAND, FACTORY, Examine, doorstep, passage
from bench.judge.scenes import (
    CHOOSING,
    FIT_FRAMES,
    JUDGE_FRAMES,
    LOOK_FRAMES,
    LOOKS,
    REPORTED,
    TEST_IMAGES,
    Scene,
    scenes,
)
from bench.judge.state import State, from_record, to_record
from bench.judge.tables import show_tables, summarise
from bench.judge.truth import LEVEL, best, compare, from_text, to_text
from calibrate import FitConfig, tap
from calibrate.judge import Evidence, examine
from calibrate.scoring.scorer import Scorer
from calibrate.source.training import shape_of

QUICK = 2  # scenes of a quick run

Row = dict[str, Any]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    default = Path(os.environ.get("RECALD_DATA", "../shared/data"))
    add = parser.add_argument
    add("--data", type=Path, default=default, help="CIFAR-10, GTSRB and networks (%(default)s)")
    add("--state", type=Path, help="folder for fits and what was measured, none of which is done again")
    add("--choosing", action="store_true", help="the seeds that rules are chosen on, instead of those reported")
    add("--quick", action="store_true", help=f"the first {QUICK} cameras alone")


def measure(args: argparse.Namespace) -> dict[str, Any]:
    seeds = CHOOSING if args.choosing else REPORTED
    rows: list[Row] = []
    doors: list[Row] = []
    pairs = list(neighbours(list(scenes(seeds, args.data))))
    for scene, neighbour in pairs[: QUICK if args.quick else None]:
        for row in Court(scene, neighbour, State(args.state)).rows():
            (rows if "candidate" in row else doors).append(row)
        print(f"{scene.name}: {scene.text}, {len(rows)} verdicts", flush=True)
    summary = summarise(rows, doors)
    show_tables(summary)
    return {
        "settings": {"fit_frames": FIT_FRAMES, "judge_frames": JUDGE_FRAMES, "looks": LOOKS, "look_frames": LOOK_FRAMES}
        | {"test_images": TEST_IMAGES, "band": BAND, "level": LEVEL, "seeds": list(seeds), "fit": vars(FitConfig())},
        "rows": rows,
        "doors": doors,
        "summary": summary,
    }


def neighbours(all_scenes: Sequence[Scene]) -> Iterator[tuple[Scene, Scene]]:
    """Each with the next camera before the same network."""
    for scene in all_scenes:
        same = [other for other in all_scenes if other.data == scene.data]
        yield scene, same[(same.index(scene) + 1) % len(same)]


class Court:
    """All candidates behind one camera, in every situation."""

    def __init__(self, scene: Scene, neighbour: Scene, state: State):
        self._scene, self._neighbour, self._state = scene, neighbour, state
        network = scene.subject.network
        frames = scene.film(scene.fitted_to()[:1])
        self._scorer = Scorer.of(tap(network), shape_of(frames), scene.subject.limits)
        self._window = lru_cache(maxsize=None)(scene.window)
        self._test = lru_cache(maxsize=None)(scene.test)
        self._homogenizers: dict[str, nn.Module | None] = {FACTORY: None}

    def rows(self) -> Iterator[Row]:
        """Verdicts; where the worker fits nothing, what it answers instead, without a candidate."""
        asked = list(candidates(self._scene, self._neighbour, self._state))
        self._homogenizers |= {candidate.name: candidate.homogenizer for candidate in asked}
        for clean in (False, True):
            for active in (None, FIT) if clean else (None, FIT, OTHER):
                for view in self._scene.views:
                    yield from self._situation(asked, clean, active, view)

    def _situation(self, asked: Sequence[Candidate], clean: bool, active: str | None, view: str) -> Iterator[Row]:
        told = {"data": self._scene.data, "seed": self._scene.seed, "drift": self._scene.text}
        told |= {"camera": "clean" if clean else "drifted", "active": active or FACTORY, "view": view}
        see = self._seen(clean, view)
        answered = doorstep(see, active)
        if answered is not None:
            yield told | {"answer": answered}
            return
        thorough = not clean and view == self._scene.views[0]
        for candidate in asked:
            if candidate.name != active and (thorough or candidate.kind in (GOOD, BAD_FIT)):
                yield told | self._verdict(candidate, see, clean, active)

    def _verdict(self, candidate: Candidate, see: Examine, clean: bool, active: str | None) -> Row:
        champion = best([self._right(name, clean) for name in {FACTORY, active or FACTORY}])
        right = self._right(candidate.name, clean)
        row: Row = {"kind": candidate.kind, "candidate": candidate.name}
        row |= {"accuracy": _percent(right), "incumbent": _percent(champion)} | compare(right, champion)._asdict()
        return row | vars(passage(see, candidate.name, active))

    def _seen(self, clean: bool, view: str) -> Callable[[str, int], Evidence]:
        """What is seen of a homogenizer, by name, on a part of the window."""

        def see(name: str, part: int) -> Evidence:
            def look() -> Row:
                return to_record(examine(self._scorer, self._homogenizers[name], self._window(view, clean).parts[part]))

            return from_record(self._state.record(f"{self._key(name, clean)}, {view}, {part}", look))

        return see

    def _right(self, name: str, clean: bool) -> Tensor:
        """Which of the test images are named right."""

        def count() -> Row:
            return {"right": to_text(self._named_right(self._homogenizers[name], self._test(clean)))}

        return from_text(self._state.record(f"{self._key(name, clean)}, test", count)["right"])

    def _named_right(self, homogenizer: nn.Module | None, frames: Tensor) -> Tensor:
        network = self._scene.subject.network
        with torch.no_grad():
            parts = [network(homogenizer(part) if homogenizer else part).argmax(1) for part in frames.split(256)]
        return torch.cat(parts) == self._scene.subject.labels[:TEST_IMAGES]

    def _key(self, name: str, clean: bool) -> str:
        return f"{self._scene.name}, {name}{', clean' if clean else ''}"


def _percent(right: Tensor) -> float:
    return 100 * float(right.float().mean())
