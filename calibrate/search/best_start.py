"""Choose where a descent begins: try the closed forms, and keep the one with the lowest objective."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from calibrate.defects import replace_defects_of_many
from calibrate.gpu import replayable
from calibrate.homogenizer import Homogenizer
from calibrate.search.defects import find_defect_step
from calibrate.search.objective import Objective
from calibrate.search.shading import find_gain
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
from calibrate.shading import brighten
from calibrate.source.description import Limits, Source, frame_shape
from calibrate.validation import FitError

START_FRAMES = 256  # frames on which the starts are compared
# Largest objective of a tone start, relative to the best other start: a tone curve can imitate other drifts.
TONE_START_MAX_LOSS_RATIO = 0.5
# Largest objective of a negative, relative to the best other start: of grey frames the sign is open to second order,
# and few cameras switch it. X-rays behind vignetting or blur had 0.65 to 2.7; inverted ones behind an exposure, a tone
# curve or a strong blur 0.2 to 0.4, digits 0.01 to 0.2. Inverted X-rays behind vignetting or a mild blur are missed.
NEGATIVE_START_MAX_LOSS_RATIO = 0.5
NEGATIVE_START = "negative"  # the first part of the name of each such start
ROTATION_SEARCH_FRAMES = 64  # frames on which rotations of colours are compared; their noise is the same for all
SPECTRAL_START = "spectral"  # part of the name of each start with a colour map for each frequency
CORRECTIONS = DEFECTS, SHADING = "defects", "shading"  # parts of a homogenizer that not every camera needs
CORRECTION_FRAMES = 128  # frames on which defects and shading are looked for
# Largest objective behind replaced defects or a gain, relative to that without: of the best starts, and again after the
# first stage of the descent from each.
CORRECTED_MAX_LOSS_RATIO = 0.8

# Evaluations of START_FRAMES: 9 linear starts, a search of rotations, which costs twice that, and 13 of half as many
# frames for defects and shading. Where one is found 9 more follow, and a second descent for one stage.
PLANNED_STARTS = 33

LOSS_NOT_FINITE = "the loss is not finite: the network overflows on these frames; check their normalisation"

ReportLoss = Callable[[float, int], float]  # an objective in nats, and on how many frames; returns the objective


@dataclass(frozen=True)
class Start:
    """Where a descent begins.

    homogenizer: ρ without the replacement of defects. defect_step: (C,) of that replacement, None without it.
    frames: (N, C, H, W) to descend on, behind that replacement, which no descent changes.
    name: of the closed form. losses: objective of each one that was tried, in nats; of some on corrected frames.
    """

    homogenizer: Homogenizer
    frames: Tensor
    name: str
    losses: dict[str, float]
    defect_step: Tensor | None

    @torch.no_grad()
    def complete(self, fitted: Homogenizer) -> Homogenizer:
        """Put the replacement of defects in front of a homogenizer that was fitted to prepared frames."""
        if self.defect_step is None:
            return fitted
        complete = fitted.with_parts(defects=True)
        assert complete.defect_step is not None
        complete.defect_step.copy_(self.defect_step)
        return complete


class _Correction(NamedTuple):
    """What is done to frames before a start is fitted to them; None where it is not needed."""

    defect_step: Tensor | None = None
    gain: Tensor | None = None
    black: Tensor | None = None

    @property
    def name(self) -> str:
        parts = {DEFECTS: self.defect_step, SHADING: self.gain}
        return "".join(f"{name}, " for name, part in parts.items() if part is not None)

    def __bool__(self) -> bool:
        return self.defect_step is not None or self.gain is not None

    def replace(self, frames: Tensor) -> Tensor:
        """Replace the defects in frames (N, C, H, W)."""
        return frames if self.defect_step is None else replace_defects_of_many(frames, self.defect_step)

    def brighten(self, frames: Tensor) -> Tensor:
        """Undo the shading of frames (N, C, H, W)."""
        return frames if self.gain is None or self.black is None else brighten(frames, self.gain, self.black)

    @torch.no_grad()
    def start(self, fitted: Homogenizer) -> Homogenizer:
        """Return a start for frames as they come from one that was fitted to corrected ones."""
        if self.gain is None or self.black is None:
            return fitted
        start = fitted.with_parts(shading=True)
        assert start.gain is not None and start.black is not None
        start.gain.copy_(self.gain)
        start.black.copy_(self.black)
        return start


@dataclass(frozen=True)
class _Chosen:
    """The best start on frames that were corrected: its name, and how it is made. losses: of all starts, in nats.

    frames: behind the replacement of defects alone, (N, C, H, W).
    """

    correction: _Correction
    frames: Tensor
    name: str
    losses: dict[str, float]
    make: Callable[[], Homogenizer]

    @property
    def loss(self) -> float:
        return self.losses[self.name]


class StartSearch:
    """Searches the start of one fit.

    source: of clean frames, None if it is not known. report: told of each start that was tried.
    corrections: names of those in CORRECTIONS that may be tried.
    """

    def __init__(
        self,
        objective: Objective,
        source: Source | None,
        generator: torch.Generator,
        report: ReportLoss,
        corrections: Collection[str] = CORRECTIONS,
    ) -> None:
        self._objective, self._source, self._generator, self._report = objective, source, generator, report
        self._corrections = corrections

    def run(self, frames: Tensor, labels: Tensor | None) -> list[Start]:
        """Return the start with the lowest objective on frames (N, C, H, W), without a correction of their pixels.

        Where defects or shading seem to be there, the best start behind their correction comes second if it is far
        better: a wrong gain may meet the statistics of the first layers, and only a descent tells. Tone curves are
        tried if no colour map for each frequency is needed. The negatives are tried for a single channel.
        labels: (N,) int64 if the objective needs them. Raises FitError if no start has a finite objective.
        """
        chosen = [self._choose(_Correction(), frames, labels)]
        if correction := self._find_correction(frames[:CORRECTION_FRAMES], first_of(labels, CORRECTION_FRAMES)):
            with suppress(FitError):  # no start behind the correction has a finite objective
                corrected = self._choose(correction, frames, labels)
                chosen += [corrected] if corrected.loss < CORRECTED_MAX_LOSS_RATIO * chosen[0].loss else []
        losses = {name: loss for one in chosen for name, loss in one.losses.items()}
        return [
            Start(one.correction.start(one.make()), one.frames, one.name, losses, one.correction.defect_step)
            for one in chosen
        ]

    def _find_correction(self, frames: Tensor, labels: Tensor | None) -> _Correction:
        """Return what corrects defects and shading; both need black and white."""
        limits = self._objective.limits
        if limits is None:
            return _Correction()

        def loss_of(seen: Tensor, offset: Tensor) -> float:
            start = pattern_start(offset) if self._source is None else colour_start(seen, self._source, offset)
            return self._report(self._objective.evaluate(start, seen, labels), len(seen))

        def loss_of_either(seen: Tensor) -> float:
            return min(loss_of(seen, none), loss_of(seen, offset_map(seen, PATTERN_SIGMAS_PX[0])))

        none = torch.zeros_like(frames[:1])
        step = gain = None
        if DEFECTS in self._corrections:
            step = find_defect_step(lambda seen: loss_of(seen, none), frames, limits)
        if SHADING in self._corrections:
            gain = find_gain(loss_of_either, _Correction(step).replace(frames), limits)
        return _Correction(step, gain, limits.black)

    def _choose(self, correction: _Correction, seen: Tensor, labels: Tensor | None) -> _Chosen:
        """Choose among the starts for frames that are corrected. Raises FitError if none has a finite objective."""
        replaced = correction.replace(seen)
        frames = correction.brighten(replaced)
        few, few_labels, limits = frames[:START_FRAMES], first_of(labels, START_FRAMES), self._objective.limits
        score, losses = _StartScorer(self._objective, few, few_labels), {}

        def try_all(starts: dict[str, Homogenizer]) -> dict[str, float]:
            tried = {name: self._report(score(start), len(few)) for name, start in starts.items()}
            losses.update({correction.name + name: loss for name, loss in tried.items()})
            return tried

        starts, spectral = _linear_starts(frames, self._source)
        if frames.shape[1] == 1:
            starts |= _negative_starts(frames, self._source, limits)
        linear = try_all(starts)
        best = _lowest_of_both_signs(linear)
        if best is None:
            raise FitError(LOSS_NOT_FINITE)
        make = partial(starts.__getitem__, best)
        if best in spectral and frames.shape[1] == 3:
            make = partial(self._rotated, spectral[best], frames, labels)
        elif SPECTRAL_START not in best:
            starts |= (tones := _tone_starts(few, self._source, limits))
            tone_losses = try_all(tones)
            best_tone = _lowest(tone_losses)
            if best_tone is not None and tone_losses[best_tone] < TONE_START_MAX_LOSS_RATIO * linear[best]:
                best, make = best_tone, partial(starts.__getitem__, best_tone)
        return _Chosen(correction, replaced, correction.name + best, losses, make)

    def _rotated(self, starts: SpectralStarts, frames: Tensor, labels: Tensor | None) -> Homogenizer:
        """Return the start with the rotation of its three colours that the network's last layer fits best.

        A wrong rotation is right to second order, so that the first layers hardly show it. The last features do, as
        the network takes the picture for something else.
        """
        few, few_labels = frames[:ROTATION_SEARCH_FRAMES], first_of(labels, ROTATION_SEARCH_FRAMES)
        tried, objective = few.new_zeros(3), self._objective
        last_layer_loss = replayable(
            lambda: objective.last_layer_loss(lambda x: starts.restore(x, tried), few, few_labels),
            objective.can_be_captured(few, few_labels),
        )

        def score(rotation: Tensor) -> float:
            tried.copy_(rotation)
            return self._report(float(last_layer_loss()), len(few))

        return starts.start(search_rotation(score, self._generator).to(few.device))


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


def first_of(labels: Tensor | None, count: int) -> Tensor | None:
    """Return the first so many labels (N,), if there are any."""
    return None if labels is None else labels[:count]
