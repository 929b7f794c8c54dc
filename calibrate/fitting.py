"""Fit a homogenizer without labels: try closed-form starts, then refine the best one on more and more frames.

The objective is that of guided data homogenization (Willis & Oala 2021, "Post-hoc domain adaptation via guided data
homogenization"): the features of the transformed frames must get the means and variances that the frozen network's
BatchNorm layers store. The distance is the Gaussian divergence instead of the paper's norms, so that layers and
channels of any scale have the same weight. The statistics are those of all frames of a stage at once. The objective is
then a plain function, and L-BFGS minimises it in far fewer passes than Adam on noisy batches.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import accumulate

import torch
from torch import Tensor, nn

from calibrate.features.class_statistics import Target
from calibrate.features.feature_maps import FeatureMap
from calibrate.features.taps import Taps, tap
from calibrate.gpu import fit_stream
from calibrate.homogenizer import Homogenizer
from calibrate.search.best_start import (
    CORRECTED_MAX_LOSS_RATIO,
    CORRECTIONS,
    LOSS_NOT_FINITE,
    PLANNED_STARTS,
    START_FRAMES,
    Start,
    StartSearch,
    first_of,
)
from calibrate.search.descent import Coordinates, descend
from calibrate.search.objective import Objective
from calibrate.source.augmentation import PaddedCrop
from calibrate.source.description import Limits, Source, frame_shape
from calibrate.source.training import detect_crop, shipped_source
from calibrate.validation import MIN_FIT_FRAMES, FitError, validate_frames, validate_labels, validate_reference

# A descent ends at this multiple of the objective of as many clean frames. Below it a fit learns the frames' content.
STOP_LOSS_PER_FLOOR = 1.5
# Largest objective where a descent behind a correction begins, relative to the other, for the correction to stay where
# both end as low as clean frames.
CLEAR_START_RATIO = 0.4
# Passes of a frame through the network: what the progress of a fit counts.
GRADIENT_PASSES = 3  # of one evaluation with its gradient

FitProgress = Callable[[int, int, float], None]  # work done, work in all, objective in nats
Clock = Callable[[], float]  # monotonic seconds; calibrate itself reads no clock


@dataclass(frozen=True)
class FitConfig:
    """The stages of a fit: for each one the number of frames, and of evaluations of the objective on them.

    A stage with more frames than there are uses all. Far from the minimum few frames show the direction, near it many
    are needed: the default costs as much as 80 passes of 128 frames, and up to 30 more where a camera seems to need
    pixels replaced or a shading evened out.
    Raises ValueError for a stage of fewer than MIN_FIT_FRAMES frames or without an evaluation.
    """

    stages: tuple[tuple[int, int], ...] = ((128, 28), (256, 14), (512, 6))

    def __post_init__(self) -> None:
        if any(frames < MIN_FIT_FRAMES or evaluations < 1 for frames, evaluations in self.stages):
            raise ValueError(f"a stage needs {MIN_FIT_FRAMES} frames and 1 evaluation at least, got {self.stages}")

    @property
    def evaluations(self) -> int:
        """Evaluations of all stages together."""
        return sum(evaluations for _, evaluations in self.stages)


@dataclass(frozen=True)
class FitResult:
    """A fitted homogenizer and how it was found.

    homogenizer: ρ, in evaluation mode and without gradients.
    start: name of the closed form that the descent began from. start_losses: objective of each start, in nats.
    history: objective at each evaluation, in nats.
    frames: how many the last stage of the descent was fitted to; more than its stages take only choose the start.
    stage_seconds: time for the source, for the starts and for each stage of the descent; empty without a clock.
    """

    homogenizer: Homogenizer
    start: str
    start_losses: dict[str, float]
    history: list[float] = field(repr=False)
    frames: int
    stage_seconds: dict[str, float]

    @property
    def seconds(self) -> float:
        """Time of the whole fit in seconds; NaN without a clock."""
        return sum(self.stage_seconds.values()) if self.stage_seconds else math.nan

    @property
    def steps(self) -> int:
        """Evaluations of the objective in the descent."""
        return len(self.history)


class _StageTimer:
    """Measures the seconds of each stage of a fit; measures nothing without a clock."""

    def __init__(self, clock: Clock | None) -> None:
        self.seconds: dict[str, float] = {}
        self._clock = clock
        self._since = clock() if clock else 0.0

    def end(self, stage: str) -> None:
        """Add the time since the last stage ended to this stage."""
        if self._clock is None:
            return
        now = self._clock()
        self.seconds[stage] = self.seconds.get(stage, 0.0) + now - self._since
        self._since = now


class _Tracker:
    """Checks the objective of the descent, and reports how much of the fit's work is done.

    Work is counted in passes of one frame through the network. The parts are the starts, then each stage. A part that
    ends early counts as done, and one that takes longer than planned waits at its end.
    """

    def __init__(self, config: FitConfig, frames: int, report: FitProgress | None):
        self._report = report
        self._costs = [min(count, frames) * GRADIENT_PASSES for count, _ in config.stages]  # of one evaluation
        works = [cost * count for cost, (_, count) in zip(self._costs, config.stages, strict=True)]
        self._ends = list(accumulate([PLANNED_STARTS * min(START_FRAMES, frames), *works]))
        self._part = self._done = 0

    def end_part(self) -> None:
        """Count the part that runs as done; the next one begins."""
        self._done = self._ends[self._part]
        self._part += 1

    def add_start(self, loss: float, frames: int) -> float:
        """Report that a start was tried on so many frames; return its objective."""
        self._advance(frames, loss)
        return loss

    def add(self, loss: float) -> None:
        """Report an evaluation of the descent. Raises FitError for a value that is not finite."""
        if not math.isfinite(loss):
            raise FitError(LOSS_NOT_FINITE)
        self._advance(self._costs[self._part - 1], loss)

    def _advance(self, passes: int, loss: float) -> None:
        self._done = min(self._done + passes, self._ends[self._part])
        if self._report is not None:
            self._report(self._done, self._ends[-1], loss)


def fit(
    model: nn.Module,
    frames: Tensor,
    reference: Target | None = None,
    *,
    features: FeatureMap | None = None,
    labels: Tensor | None = None,
    criterion: float = 0.0,
    source: Source | None = None,
    limits: Limits | None = None,
    corrections: Collection[str] = CORRECTIONS,
    config: FitConfig | None = None,
    seed: int = 0,
    chunk: int | None = None,
    progress: FitProgress | None = None,
    clock: Clock | None = None,
) -> FitResult:
    """Fit ρ so that the features of ρ(frames) match the statistics shipped in `model`. The model stays unchanged.

    The fit runs where the frames are, on the processor or on a GPU. The model and the features must be there; ρ will
    be. The draws are the same everywhere.
    frames: (N, C, H, W) float32 in the model's normalised input space, N >= MIN_FIT_FRAMES.
    reference: statistics to aim at instead of the shipped ones. Class-conditional ones need labels, (N,) int64.
    features: the map that statistics are taken of; default: the inputs of all BatchNorm layers.
    criterion: weight of the cross-entropy of the network's outputs with the labels (r_crit of the paper).
    source: second-order description of clean frames, if it was measured. Default: it is read from the network.
    limits: black and white in the model's input space. Restored values outside are penalised.
    corrections: the parts of ρ that are tried where a camera seems to need them, with limits: "defects", "shading".
    seed: of the order of the frames and of all random draws. Torch's global random state is not used.
    chunk: frames that go through the network at once; bounds memory. Default: as many as suit a processor.
    progress: called after each evaluation, of the starts and of the descent; an exception from it ends the fit and is
    raised.
    clock: such as time.perf_counter, for the seconds in the result; without it they are NaN.
    Raises FitError for frames that cannot be fitted, for missing or wrong labels, for a reference of other features
    and for a loss that is not finite; UnsupportedModel for a network without BatchNorm statistics.
    """
    with fit_stream(frames.device):
        timer, config = _StageTimer(clock), config or FitConfig()
        validate_frames(frames := frames.detach())
        taps = tap(model)
        features, target = features or taps, (reference or taps.reference).to(frames.device)
        limits = limits and limits.to(frames.device)
        source = source and source.to(frames.device)
        validate_labels(frames, target, labels, criterion, validate_reference(features, frames, target))
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(frames), generator=generator).to(frames.device)  # every stage sees the whole period
        frames, labels = frames[order], None if labels is None else labels[order]
        needs_crop = target.shipped or source is None  # only shipped statistics are those of cropped frames
        crop = detect_crop(taps, frame_shape(frames), limits.black) if limits is not None and needs_crop else None
        objective = Objective(features, target, crop if target.shipped else None, criterion, limits, chunk)
        source = source or _shipped_source(taps, frames, seed, crop)
        timer.end("source")
        tracker = _Tracker(config, len(frames), progress)
        starts = StartSearch(objective, source, generator, tracker.add_start, corrections).run(frames, labels)
        best = _descend([_Descent(start, objective, labels, generator) for start in starts], config, tracker, timer)
        fitted = min(len(frames), max((count for count, _ in config.stages), default=0))
        return FitResult(best.result(), best.start.name, best.start.losses, best.losses, fitted, timer.seconds)


def _shipped_source(taps: Taps, frames: Tensor, seed: int, crop: PaddedCrop | None) -> Source | None:
    source = shipped_source(taps, frame_shape(frames), seed, crop)
    return None if source is None else source.to(frames.device)


class _Descent:
    """The descent from one start.

    losses: objectives at its evaluations so far, in nats. at_goal: it is as low as that of as many clean frames.
    """

    def __init__(self, start: Start, objective: Objective, labels: Tensor | None, generator: torch.Generator):
        self.start, self.losses, self.at_goal = start, list[float](), False
        self._objective, self._frames, self._labels = objective, start.frames, labels
        self._coordinates = Coordinates(start.homogenizer, self._frames, generator)

    def run_stage(self, count: int, evaluations: int, report: Callable[[float], None]) -> None:
        """Descend until the objective is that of as many clean frames, or the evaluations are used up."""
        frames, labels = self._frames[:count], first_of(self._labels, count)
        goal = STOP_LOSS_PER_FLOOR * self._objective.clean_floor(self._coordinates, frames)

        def record(loss: float) -> None:
            report(loss)
            self.losses.append(loss)

        descend(self._objective, self._coordinates, frames, labels, evaluations, goal, record)
        self.at_goal = self.losses[-1] <= goal

    def loss(self) -> float:
        """Return the objective where the descent stands, on the frames that starts are compared on, in nats."""
        frames, labels = self._frames[:START_FRAMES], first_of(self._labels, START_FRAMES)
        return self._objective.evaluate(self._coordinates, frames, labels)

    def result(self) -> Homogenizer:
        """Return the homogenizer where the descent stands."""
        return self.start.complete(self._coordinates.homogenizer())


def _descend(descents: list[_Descent], config: FitConfig, tracker: _Tracker, timer: _StageTimer) -> _Descent:
    """Run all stages, from the first one on only from the best start; return that descent."""
    tracker.end_part()
    timer.end("starts")
    for count, evaluations in config.stages:
        descents = [_best_after_stage(descents, count, evaluations, tracker.add)]
        tracker.end_part()
        timer.end(f"{count} frames")
    return descents[-1]  # without a stage the start behind a correction, which is far better than the other


def _best_after_stage(
    descents: Sequence[_Descent], count: int, evaluations: int, report: Callable[[float], None]
) -> _Descent:
    """Run a stage of each descent; return the one behind corrected defects or shading if it is far better."""
    plain, *corrected = descents
    plain.run_stage(count, evaluations, report)
    for descent in corrected:
        with suppress(FitError):  # the other one is left
            descent.run_stage(count, evaluations, report)
            if _is_far_better(descent, plain):
                return descent
    return plain


def _is_far_better(corrected: _Descent, plain: _Descent) -> bool:
    """Compare two descents after a stage.

    Where both are at their goal the objective tells no more. Then a correction stays that alone had brought most of
    it: behind a blur, which no gain undoes, the start behind a gain had half of the objective of the other, behind
    vignetting, dead pixels or impulse noise 0.02 to 0.36 of it.
    """
    if corrected.at_goal and corrected.losses[0] < CLEAR_START_RATIO * plain.losses[0]:
        return True
    return corrected.loss() < CORRECTED_MAX_LOSS_RATIO * plain.loss()
