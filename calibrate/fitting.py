"""Fit a homogenizer without labels: closed-form starts, the best of them refined on ever more frames.

The objective is the one of guided data homogenization (Willis & Oala 2021, "Post-hoc domain adaptation via
guided data homogenization"): features of the transformed frames shall have the means and variances that the
frozen network's BatchNorm layers carry. Distance is the Gaussian divergence instead of the paper's norms, so
that layers and channels of any scale weigh the same. Statistics are those of all frames of a stage at once: that
makes the objective a plain function, which L-BFGS descends in far fewer passes than Adam does on noisy batches.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from calibrate.features.class_statistics import Target
from calibrate.features.feature_maps import FeatureMap
from calibrate.features.taps import tap
from calibrate.homogenizer import Homogenizer
from calibrate.search.descent import Coordinates, descend
from calibrate.search.objective import Objective
from calibrate.search.starts import (
    PATTERN_SIGMAS,
    SpectralStarts,
    colour_start,
    negative_start,
    offset_map,
    pattern_start,
    search_rotation,
)
from calibrate.search.tone import EXPONENTS, tone_start
from calibrate.source.training import Limits, Source, read_crop, shape_of, shipped_source
from calibrate.validation import MIN_FRAMES, FitError, validate_frames, validate_labels, validate_reference

SLACK = 1.5  # of the objective of as many clean frames: below it a fit learns what these frames happen to show
START_FRAMES = 256  # on which the starts are compared
CLEARLY = 0.5  # a tone curve is believed in where it leaves half of the objective: it can imitate what else is amiss
SEARCH_FRAMES = 64  # on which rotations of colours are: all see the same frames, so their noise is the same too

SPECTRAL = "spectral"  # in the names of starts with a colour map for each frequency

NOT_FINITE = "the loss is not finite: the frames are outside anything the network can carry"

Progress = Callable[[int, int, float], None]  # evaluations done, evaluations in all, objective
Clock = Callable[[], float]  # monotonic seconds; calibrate itself reads no clock


@dataclass(frozen=True)
class FitConfig:
    """stages: frames, and evaluations of the objective on them, in turn; where there are fewer frames, on all.

    Far from the goal few frames tell the way, near it many do: 80 passes of 128 frames together.
    """

    stages: tuple[tuple[int, int], ...] = ((128, 28), (256, 14), (512, 6))

    def __post_init__(self) -> None:
        if any(frames < MIN_FRAMES or evaluations < 1 for frames, evaluations in self.stages):
            raise ValueError(f"a stage needs {MIN_FRAMES} frames and 1 evaluation at least, got {self.stages}")

    @property
    def evaluations(self) -> int:
        return sum(evaluations for _, evaluations in self.stages)


@dataclass(frozen=True)
class FitResult:
    """homogenizer: ρ, in evaluation mode, without gradients. start: the name of the closed form it began from.

    history: objective at each evaluation, nats.
    stage_seconds: of reading the source, of the starts, and of each stage of the descent; empty without a clock.
    seconds: their sum, NaN without a clock.
    """

    homogenizer: Homogenizer
    start: str
    start_losses: dict[str, float]
    history: list[float] = field(repr=False)
    stage_seconds: dict[str, float]

    @property
    def seconds(self) -> float:
        return sum(self.stage_seconds.values()) if self.stage_seconds else math.nan

    @property
    def steps(self) -> int:
        return len(self.history)


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
    progress: Progress | None = None,
    clock: Clock | None = None,
) -> FitResult:
    """Fit ρ so that the features of ρ(frames) match the statistics shipped in `model`, which stays unchanged.

    frames: (N, C, H, W) float32 in the model's normalised input space, N >= MIN_FRAMES.
    reference: statistics to aim at instead of the shipped ones; class-conditional ones need labels, (N,) int64.
    features: what statistics are taken of, by default the inputs of all BatchNorm layers.
    criterion: weight of the cross-entropy of the network's outputs with the labels.
    source: second-order description of clean frames, where it was measured; otherwise it is read from the network.
    limits: black and white in the model's input space; no restored value need lie outside.
    clock: such as time.perf_counter, for the seconds in the result; without one there are none.
    Raises FitError for frames that cannot be fitted, for a reference of other features and for a loss that is not
    finite, UnsupportedModel for a network without BatchNorm statistics.
    """
    laps = _Laps(clock)
    config = config or FitConfig()
    validate_frames(frames := frames.detach())
    taps = tap(model)
    features, target = features or taps, reference or taps.reference
    classes = validate_reference(features, frames, target)
    validate_labels(frames, target, labels, criterion, classes)
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(frames), generator=generator)  # a stage shall see all of the time they come from
    frames, labels = frames[order], None if labels is None else labels[order]
    knows_enough = source is not None and not target.shipped
    crop = None if limits is None or knows_enough else read_crop(taps, shape_of(frames), limits.black)
    objective = Objective(features, target, crop if target.shipped else None, criterion, limits)
    source = source or shipped_source(taps, shape_of(frames), seed, crop)
    laps.end("source")
    homogenizer, start, losses = _best_start(objective, frames, labels, source, generator)
    coordinates = Coordinates(homogenizer, frames, generator)
    log = _Log(config.evaluations, progress)
    laps.end("starts")
    for size, evaluations in config.stages:
        goal = SLACK * objective.floor(coordinates, frames[:size])
        descend(objective, coordinates, frames[:size], _first(labels, size), evaluations, goal, log)
        laps.end(f"{size} frames")
    return FitResult(coordinates.homogenizer(), start, losses, log.history, laps.seconds)


def _first(labels: Tensor | None, count: int) -> Tensor | None:
    return None if labels is None else labels[:count]


def _best_start(
    objective: Objective, frames: Tensor, labels: Tensor | None, source: Source | None, generator: torch.Generator
) -> tuple[Homogenizer, str, dict[str, float]]:
    """The identity or a closed form, whichever the statistics like best; its name, and the objectives of all tried.

    Other tone curves are tried where no frequency needs a colour map of its own, and where there is but one colour
    the negative of everything.
    """
    few, named = frames[:START_FRAMES], _first(labels, START_FRAMES)
    starts, spectral = _closed_forms(frames, source)
    starts |= {name: family.start() for name, family in spectral.items()}
    if frames.shape[1] == 1:
        starts |= _negatives(frames, source, objective.limits)
    losses = {name: objective.evaluate(start, few, named) for name, start in starts.items()}
    finite = [name for name in starts if math.isfinite(losses[name])]
    if not finite:
        raise FitError(NOT_FINITE)
    best = min(finite, key=lambda name: losses[name])
    if best in spectral and frames.shape[1] == 3:
        return _turned(objective, spectral[best], frames, labels, generator), best, losses
    if SPECTRAL in best:
        return starts[best], best, losses
    toned = _toned(objective, few, named, source)
    losses |= {name: loss for name, (_, loss) in toned.items()}
    other = min((n for n in toned if math.isfinite(losses[n])), key=lambda name: losses[name], default=best)
    if losses[other] < CLEARLY * losses[best]:
        return toned[other][0], other, losses
    return starts[best], best, losses


def _closed_forms(frames: Tensor, source: Source | None) -> tuple[dict[str, Homogenizer], dict[str, SpectralStarts]]:
    """Starts without and with a colour map of its own for each frequency.

    Each without an offset map and with some: the fine structure of the mean frame is a fixed pattern, or it is what
    the camera always looks at.
    """
    offsets = {f" + pattern under {sigma:g} px": offset_map(frames, sigma) for sigma in PATTERN_SIGMAS}
    starts, spectral = {}, {}
    for suffix, offset in {"": torch.zeros_like(frames[:1]), **offsets}.items():
        starts[f"identity{suffix}"] = pattern_start(offset)
        if source is not None:
            starts[f"colour{suffix}"] = colour_start(frames, source, offset)
            spectral[f"{SPECTRAL}{suffix}"] = SpectralStarts(frames, source, offset)
    return starts, spectral


def _negatives(frames: Tensor, source: Source | None, limits: Limits | None) -> dict[str, Homogenizer]:
    """The closed forms for a camera that shows black as white."""
    whole = torch.zeros(frames.shape[1]) if limits is None else limits.black + limits.white
    starts, spectral = _closed_forms(whole.view(-1, 1, 1) - frames, source)
    starts |= {name: family.start() for name, family in spectral.items()}
    return {f"negative {name}": negative_start(start, whole) for name, start in starts.items()}


def _toned(
    objective: Objective, frames: Tensor, labels: Tensor | None, source: Source | None
) -> dict[str, tuple[Homogenizer, float]]:
    """Starts with another tone curve, and their objectives."""
    if source is None or objective.limits is None:
        return {}
    starts = {f"tone {e:g}": tone_start(frames, source, objective.limits, e) for e in EXPONENTS}
    return {name: (start, objective.evaluate(start, frames, labels)) for name, start in starts.items()}


def _turned(
    objective: Objective, starts: SpectralStarts, frames: Tensor, labels: Tensor | None, generator: torch.Generator
) -> Homogenizer:
    """The start with the rotation of its three colours that suits the last layer best.

    A wrong rotation is right to second order, so the first layers hardly mind it; but what the network takes the
    picture for, which its last features tell, is off.
    """
    few, named = frames[:SEARCH_FRAMES], _first(labels, SEARCH_FRAMES)
    rotation = search_rotation(lambda r: objective.evaluate_last(starts.start(r), few, named), generator)
    return starts.start(rotation)


class _Log:
    """Keeps what a descent is told, and ends it where the objective is lost."""

    def __init__(self, evaluations: int, progress: Progress | None):
        self.history: list[float] = []
        self._evaluations, self._progress = evaluations, progress

    def __call__(self, loss: float) -> None:
        if not math.isfinite(loss):
            raise FitError(NOT_FINITE)
        self.history.append(loss)
        if self._progress is not None:
            self._progress(min(len(self.history), self._evaluations), self._evaluations, loss)


class _Laps:
    """Where the time of a fit goes, in seconds; nothing without a clock."""

    def __init__(self, clock: Clock | None) -> None:
        self.seconds: dict[str, float] = {}
        self._clock = clock
        self._since = clock() if clock else 0.0

    def end(self, name: str) -> None:
        if self._clock is None:
            return
        now = self._clock()
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self._since
        self._since = now
