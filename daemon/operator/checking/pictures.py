"""`recald check` from pictures: is the camera as its clean frames were, and if not, does a fit repair it?

Nothing is stored or changed.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from calibrate import Limits, tap
from calibrate.baseline.baseline import SensorState
from calibrate.baseline.frames import FrameStatistics
from calibrate.baseline.learning import MIN_HEALTHY_FRAMES
from calibrate.baseline.run_length import ALLOWANCE
from calibrate.errors import RecaldError
from calibrate.readouts.picture_statistics import PictureStatistics
from calibrate.readouts.reading import read_outs
from calibrate.readouts.words import describe
from calibrate.scoring.scorer import Measurement, Scorer
from daemon.config import RecalibrateConfig
from daemon.images import evenly_spaced, load_images
from daemon.levels import to_levels
from daemon.model.preprocess import Preprocessor
from daemon.operator.checking.check import (
    SAME_CAMERA,
    UNSEEN_CONTENT,
    CameraVerdict,
    Condition,
    describe_camera,
    finite,
)
from daemon.operator.checking.repair import MIN_REPAIR_PICTURES, RepairTrial, Report
from daemon.operator.commissioning.commission import CLEAN_BAND, DRIFT_WINDOW, conversion
from daemon.recalibration.drift_alarm import counted_drift
from daemon.worker.picture_watch import can_be_read
from deploy.model.commissioned import load_baseline, load_clean_data, load_pictures
from deploy.model.frozen import FrozenModel, load_frozen

MAX_PICTURES = RecalibrateConfig().frames  # as many as a recalibration has; more hardly change the median of windows
MIN_SHARE = 0.5  # of the windows that decide together about content
COARSE = (
    "verdict by the drift score alone, which is coarser: `recald commission` with "
    f"{MIN_HEALTHY_FRAMES} clean pictures or more sharpens it"
)


class Looks(NamedTuple):
    """What the windows show. score: median drift score. camera: medians beside the baseline, None without one.

    label_shift: most windows show few classes. windows: how many there are.
    """

    score: float
    camera: SensorState | None
    label_shift: bool
    windows: int

    @property
    def drifted(self) -> bool:
        """Whether the camera has drifted; what is not finite has."""
        if self.camera is not None:
            return not counted_drift(self.camera) <= ALLOWANCE
        return not self.score <= CLEAN_BAND and not self.label_shift

    @property
    def unusual(self) -> bool:
        """Whether the content is unusual."""
        if self.camera is None:
            return self.label_shift
        return not self.camera.known or self.camera.content > 1


def check_pictures(model: Path, pictures: Path) -> CameraVerdict:
    """Judge the camera that took the pictures of a folder or .npz file, at most MAX_PICTURES, evenly from all.

    Raises ImageError for pictures that cannot be read, RecaldError for too few, ModelError for a model that cannot be
    used.
    """
    frozen = load_frozen(model)
    preprocessor = Preprocessor(frozen.card)
    with Console(stderr=True, markup=False, emoji=False).status("reading pictures") as progress:
        images, _ = load_images(pictures, at_most=MAX_PICTURES, convert=conversion(frozen, preprocessor))
        checker = PictureChecker(frozen, torch.from_numpy(preprocessor.normalise(images)), progress.update)
        if len(images) < checker.window:
            raise RecaldError(f"{pictures}: {len(images)} pictures are too few, at least {checker.window} are needed")
        verdict = checker.verdict()
        if verdict.condition in (Condition.OK, Condition.CONTENT_SHIFT):
            return verdict
        progress.update("reading out what happened to the camera")
        drifted = _what_drifted(frozen, images)
    figures = verdict.figures | {"drifted": drifted}
    return replace(verdict, reasons=(*verdict.reasons, *drifted), figures=figures)


def _what_drifted(frozen: FrozenModel, images: np.ndarray) -> list[str]:
    """Say in words what happened to the camera that took images (N, h, w, C); [] without clean pictures to compare."""
    healthy = load_pictures(frozen)
    if healthy is None or not can_be_read(images):
        return []
    return describe(read_outs(healthy, PictureStatistics.of(torch.from_numpy(to_levels(images)))))


class PictureChecker:
    """Compares pictures with the clean frames of a frozen model, and fits to them where they have drifted."""

    def __init__(self, frozen: FrozenModel, frames: Tensor, report: Report):
        """frames: (N, C, H, W) in normalised input units, in their order. report: is told the progress.

        Raises ModelError for measurements of clean frames that cannot be used.
        """
        self._frozen, self._frames, self._report = frozen, frames, report
        taps, normalisation = tap(frozen.module), frozen.card.normalisation
        limits = Limits.of(normalisation.mean, normalisation.std)
        clean = load_clean_data(frozen, taps)
        self._baseline = load_baseline(frozen, taps)
        self._scorer = Scorer.of(taps, frozen.card.input.shape, limits, clean, frozen.output)
        self.window = DRIFT_WINDOW if self._baseline is None else int(self._baseline.size)

    def verdict(self) -> CameraVerdict:
        """Return the verdict on the camera. There must be `window` frames at least."""
        looks = self._look()
        reasons, figures = list(_reasons(looks)), _figures(looks, len(self._frames))
        if looks.drifted:
            repair = self._repair(looks)
            return replace(repair, reasons=(*repair.reasons, *reasons), figures=figures | repair.figures)
        if looks.unusual:
            summary = UNSEEN_CONTENT if looks.camera and not looks.camera.known else SAME_CAMERA
            return CameraVerdict(Condition.CONTENT_SHIFT, summary, tuple(reasons), figures)
        return CameraVerdict(Condition.OK, "no drift", tuple(reasons), figures)

    def _look(self) -> Looks:
        """Measure windows as drift checks do. Each is spread over all frames, so that none shows a single scene."""
        count = len(self._frames) // self.window
        chosen = self._frames[evenly_spaced(len(self._frames), count * self.window)]
        measured = []
        for number in range(count):
            self._report(f"comparing: window {number + 1} of {count}")
            measured.append(self._scorer.measure(chosen[number::count]))
        score = float(np.median([one.drift.score for one in measured]))
        return Looks(score, self._compare(measured), _most([one.label_shift for one in measured]), count)

    def _compare(self, measured: list[Measurement]) -> SensorState | None:
        if self._baseline is None:
            return None
        reference = self._scorer.taps.reference
        states = [self._baseline.compare(FrameStatistics.of(one.moments, one.logits, reference)) for one in measured]
        drift, content = (float(np.median([state[part] for state in states])) for part in (0, 1))
        return SensorState(drift, content, _most([state.known for state in states]))

    def _repair(self, looks: Looks) -> CameraVerdict:
        """Say whether the drift can be repaired; not known for too few pictures and for few classes."""
        count = len(self._frames)
        if looks.label_shift:
            return CameraVerdict(Condition.UNDECIDED, "few classes are in view; pictures of more of them tell it")
        if count < MIN_REPAIR_PICTURES:
            few = f"{count} pictures are too few for a fit; {MIN_REPAIR_PICTURES} or more tell it"
            return CameraVerdict(Condition.UNDECIDED, few)
        return RepairTrial(self._frozen, self._scorer, self._frames, self._report).run()


def _reasons(looks: Looks) -> list[str]:
    score = f"drift score: {looks.score:.2f}, clean is up to {CLEAN_BAND:g} (median of {looks.windows} window(s))"
    if looks.camera is None:
        few = ["few classes are in view, and the model is sure of them"] if looks.label_shift else []
        return [score, *few, COARSE]
    if not looks.camera.known:
        return ["content that hardly any healthy frame had: only a drift far beyond it is told", score]
    return [*describe_camera(looks.camera.drift, looks.camera.content), score]


def _figures(looks: Looks, count: int) -> dict[str, Any]:
    return {
        "pictures": count,
        "drift": looks.camera and finite(looks.camera.drift),
        "content": looks.camera and finite(looks.camera.content),
        "drift_score": finite(looks.score),
    }


def _most(answers: list[bool]) -> bool:
    return sum(answers) >= MIN_SHARE * len(answers)
