"""Fit a homogenizer without labels: try closed-form starts, then refine the best one on more and more frames.

The objective is that of guided data homogenization (Willis & Oala 2021, "Post-hoc domain adaptation via guided data
homogenization"): the features of the transformed frames must get the means and variances that the frozen network's
BatchNorm layers store. The distance is the Gaussian divergence instead of the paper's norms, so that layers and
channels of any scale have the same weight. The statistics are those of all frames of a stage at once. The objective is
then a plain function, and L-BFGS minimises it in far fewer passes than Adam on noisy batches.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import accumulate

import torch
from torch import Tensor, nn

from calibrate.features.class_statistics import Target
from calibrate.features.feature_maps import FeatureMap
from calibrate.features.taps import Taps, tap
from calibrate.gpu import fit_stream, replayable
from calibrate.homogenizer import Homogenizer
from calibrate.search.descent import Coordinates, descend
from calibrate.search.objective import Objective
from calibrate.search.starts import (
    PATTERN_SIGMAS_PX,
    SpectralStarts,
    colour_start,
    negative_start,
    offset_map,
    pattern_start,
    search_rotation,
)
from calibrate.search.tone import TONE_EXPONENTS, tone_start
from calibrate.source.augmentation import PaddedCrop
from calibrate.source.description import Limits, Source, frame_shape
from calibrate.source.training import detect_crop, shipped_source
from calibrate.validation import MIN_FIT_FRAMES, FitError, validate_frames, validate_labels, validate_reference

# A descent ends at this multiple of the objective of as many clean frames. Below it a fit learns the frames' content.
STOP_LOSS_PER_FLOOR = 1.5
START_FRAMES = 256  # frames on which the starts are compared
# Largest objective of a tone start, relative to the best other start: a tone curve can imitate other drifts.
TONE_START_MAX_LOSS_RATIO = 0.5
# Largest objective of a negative, relative to the best other start: of grey frames the sign is open to second order,
# and few cameras switch it. X-rays behind vignetting or blur had 0.65 to 2.7; inverted ones behind an exposure, a tone
# curve or a strong blur 0.2 to 0.4, digits 0.01 to 0.2. Inverted X-rays behind vignetting or a mild blur are missed.
NEGATIVE_START_MAX_LOSS_RATIO = 0.5
NEGATIVE_START = "negative"  # the first part of the name of each such start
ROTATION_SEARCH_FRAMES = 64  # frames on which rotations of colours are compared; their noise is the same for all

# Passes of a frame through the network: what the progress of a fit counts.
PLANNED_STARTS = 27  # evaluations of START_FRAMES: 9 linear starts, and a search of rotations, which costs twice that
GRADIENT_PASSES = 3  # of one evaluation with its gradient

SPECTRAL_START = "spectral"  # part of the name of each start with a colour map for each frequency

LOSS_NOT_FINITE = "the loss is not finite: the network overflows on these frames; check their normalisation"

FitProgress = Callable[[int, int, float], None]  # work done, work in all, objective in nats
Clock = Callable[[], float]  # monotonic seconds; calibrate itself reads no clock


@dataclass(frozen=True)
class FitConfig:
    """The stages of a fit: for each one the number of frames, and of evaluations of the objective on them.

    A stage with more frames than there are uses all. Far from the minimum few frames show the direction, near it many
    are needed: the default costs as much as 80 passes of 128 frames.
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
    """Records the objective of the descent, and reports how much of the fit's work is done.

    Work is counted in passes of one frame through the network. The parts are the starts, then each stage. A part that
    ends early counts as done, and one that takes longer than planned waits at its end.
    """

    def __init__(self, config: FitConfig, frames: int, report: FitProgress | None):
        self.losses: list[float] = []
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
        """Record an evaluation of the descent. Raises FitError for a value that is not finite."""
        if not math.isfinite(loss):
            raise FitError(LOSS_NOT_FINITE)
        self.losses.append(loss)
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
        homogenizer, start, start_losses = _best_start(objective, frames, labels, source, generator, tracker)
        coordinates = Coordinates(homogenizer, frames, generator)
        tracker.end_part()
        timer.end("starts")
        for count, evaluations in config.stages:
            _descend_on(objective, coordinates, frames[:count], _first(labels, count), evaluations, tracker)
            timer.end(f"{count} frames")
        fitted = min(len(frames), max((count for count, _ in config.stages), default=0))
        return FitResult(coordinates.homogenizer(), start, start_losses, tracker.losses, fitted, timer.seconds)


def _shipped_source(taps: Taps, frames: Tensor, seed: int, crop: PaddedCrop | None) -> Source | None:
    source = shipped_source(taps, frame_shape(frames), seed, crop)
    return None if source is None else source.to(frames.device)


def _descend_on(
    objective: Objective,
    coordinates: Coordinates,
    frames: Tensor,
    labels: Tensor | None,
    evaluations: int,
    tracker: _Tracker,
) -> None:
    """Run one stage: descend until the objective is that of as many clean frames, or the evaluations are used up."""
    goal = STOP_LOSS_PER_FLOOR * objective.clean_floor(coordinates, frames)
    descend(objective, coordinates, frames, labels, evaluations, goal, tracker.add)
    tracker.end_part()


def _first(labels: Tensor | None, count: int) -> Tensor | None:
    return None if labels is None else labels[:count]


def _best_start(
    objective: Objective,
    frames: Tensor,
    labels: Tensor | None,
    source: Source | None,
    generator: torch.Generator,
    tracker: _Tracker,
) -> tuple[Homogenizer, str, dict[str, float]]:
    """Return the start with the lowest objective, its name, and the objectives of all starts, in nats.

    Tone curves are tried if no colour map for each frequency is needed. The negatives are tried for a single channel.
    Raises FitError if no start has a finite objective.
    """
    few, few_labels = frames[:START_FRAMES], _first(labels, START_FRAMES)
    starts, spectral = _linear_starts(frames, source)
    if frames.shape[1] == 1:
        starts |= _negative_starts(frames, source, objective.limits)
    score = _StartScorer(objective, few, few_labels)

    def evaluate(start: Homogenizer) -> float:
        return tracker.add_start(score(start), len(few))

    losses = {name: evaluate(start) for name, start in starts.items()}
    best = _lowest_of_both_signs(losses)
    if best is None:
        raise FitError(LOSS_NOT_FINITE)
    if best in spectral and frames.shape[1] == 3:
        return _rotated_start(objective, spectral[best], frames, labels, generator, tracker), best, losses
    if SPECTRAL_START in best:
        return starts[best], best, losses
    tone_starts = _tone_starts(few, source, objective.limits)
    tone_losses = {name: evaluate(start) for name, start in tone_starts.items()}
    best_tone = _lowest(tone_losses)
    all_losses = losses | tone_losses
    if best_tone is not None and tone_losses[best_tone] < TONE_START_MAX_LOSS_RATIO * losses[best]:
        return tone_starts[best_tone], best_tone, all_losses
    return starts[best], best, all_losses


class _StartScorer:
    """Computes the objective of starts on the same frames; on a GPU with one launch for each start."""

    def __init__(self, objective: Objective, frames: Tensor, labels: Tensor | None):
        rho = self._homogenizer = Homogenizer(*frame_shape(frames)).to(frames.device).requires_grad_(False)
        self._loss = replayable(lambda: objective.loss(rho, frames, labels), objective.can_be_captured(frames, labels))

    def __call__(self, start: Homogenizer) -> float:
        """Return the objective of the start, in nats."""
        self._homogenizer.load_state_dict(start.state_dict())
        return float(self._loss())


def _lowest(losses: dict[str, float]) -> str | None:
    """Return the name with the lowest finite loss; None if no loss is finite."""
    return min((name for name in losses if math.isfinite(losses[name])), key=lambda name: losses[name], default=None)


def _lowest_of_both_signs(losses: dict[str, float]) -> str | None:
    """Return the name with the lowest finite loss, that of a negative only if it is far lower; None without one."""
    negatives = {name: loss for name, loss in losses.items() if name.startswith(NEGATIVE_START)}
    negative, other = _lowest(negatives), _lowest({n: loss for n, loss in losses.items() if n not in negatives})
    if negative is None or other is None:
        return negative or other
    return negative if losses[negative] < NEGATIVE_START_MAX_LOSS_RATIO * losses[other] else other


def _linear_starts(frames: Tensor, source: Source | None) -> tuple[dict[str, Homogenizer], dict[str, SpectralStarts]]:
    """Return the starts without a tone curve, and those with a colour map for each frequency also for other rotations.

    Each comes without an offset map and with several: the fine structure of the mean frame is either a fixed pattern
    or what the camera always looks at.
    """
    offsets = {"": torch.zeros_like(frames[:1])}
    offsets |= {f" + pattern under {sigma:g} px": offset_map(frames, sigma) for sigma in PATTERN_SIGMAS_PX}
    starts, spectral = {}, {}
    for suffix, offset in offsets.items():
        starts[f"identity{suffix}"] = pattern_start(offset)
        if source is not None:
            starts[f"colour{suffix}"] = colour_start(frames, source, offset)
            spectral[f"{SPECTRAL_START}{suffix}"] = SpectralStarts(frames, source, offset)
    return starts | {name: rotations.start() for name, rotations in spectral.items()}, spectral


def _negative_starts(frames: Tensor, source: Source | None, limits: Limits | None) -> dict[str, Homogenizer]:
    """Return the linear starts for a camera that shows black as white."""
    whole = frames.new_zeros(frames.shape[1]) if limits is None else limits.black + limits.white
    starts, _ = _linear_starts(whole.view(-1, 1, 1) - frames, source)
    return {f"{NEGATIVE_START} {name}": negative_start(start, whole) for name, start in starts.items()}


def _tone_starts(frames: Tensor, source: Source | None, limits: Limits | None) -> dict[str, Homogenizer]:
    """Return the starts with a tone curve. They need black, white and the colours of clean frames."""
    if source is None or limits is None:
        return {}
    return {f"tone {exponent:g}": tone_start(frames, source, limits, exponent) for exponent in TONE_EXPONENTS}


def _rotated_start(
    objective: Objective,
    starts: SpectralStarts,
    frames: Tensor,
    labels: Tensor | None,
    generator: torch.Generator,
    tracker: _Tracker,
) -> Homogenizer:
    """Return the start with the rotation of its three colours that the network's last layer fits best.

    A wrong rotation is right to second order, so that the first layers hardly show it. The last features do, as the
    network takes the picture for something else.
    """
    few, few_labels = frames[:ROTATION_SEARCH_FRAMES], _first(labels, ROTATION_SEARCH_FRAMES)

    tried = few.new_zeros(3)
    last_layer_loss = replayable(
        lambda: objective.last_layer_loss(lambda x: starts.restore(x, tried), few, few_labels),
        objective.can_be_captured(few, few_labels),
    )

    def score(rotation: Tensor) -> float:
        tried.copy_(rotation)
        return tracker.add_start(float(last_layer_loss()), len(few))

    return starts.start(search_rotation(score, generator).to(few.device))
