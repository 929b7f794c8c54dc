"""Fit candidates to parts of the frames of a recalibration: one homogenizer, or one for each of two cameras in turn."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from calibrate.fitting import FitResult
from calibrate.search.best_start import CORRECTIONS
from calibrate.search.separation import find_split
from calibrate.split import AnyHomogenizer, SplitHomogenizer, frame_statistics
from daemon.worker.context import WorkerContext
from daemon.worker.fit_device import fit_on_device

CHUNK_FRAMES = 64  # that are there as float32 at once where no fit needs them all; bounds memory


class Share(NamedTuple):
    """A fit's share of the progress of all fits, from and to."""

    begin: float
    end: float

    def at(self, ratio: float) -> float:
        return self.begin + (self.end - self.begin) * ratio

    def halves(self) -> tuple[Share, Share]:
        middle = self.at(0.5)
        return Share(self.begin, middle), Share(middle, self.end)


class Proposal(NamedTuple):
    """A candidate and its fits: one, or one for each branch. seconds: they took together. device: in words."""

    homogenizer: AnyHomogenizer
    fits: tuple[FitResult, ...]
    device: str
    seconds: float


# Fits to a part of the frames, (N,) bool, with a seed.
Propose = Callable[[Tensor, int, Share], Proposal]


class Fitter:
    """Fits to the images (N, h, w, C) of one recalibration of a sensor.

    report: called with the progress of all fits, 0 to 1. corrections: the parts of ρ that may be tried (calibrate.fit).
    """

    def __init__(
        self,
        context: WorkerContext,
        sensor: str,
        images: np.ndarray,
        report: Callable[[float], None],
        corrections: Collection[str] = CORRECTIONS,
    ):
        self._context, self._images, self._report, self._corrections = context, images, report, corrections
        self._clean = context.scorer_of(sensor).clean

    def chunks(self) -> Iterator[Tensor]:
        """Yield all frames, CHUNK_FRAMES at most at a time."""
        yield from map(self._context.frames, np.array_split(self._images, -(-len(self._images) // CHUNK_FRAMES)))

    def sees_two_cameras(self, *parts: Tensor) -> bool:
        """Return whether each of these parts of the frames, (N,) bool, is of two cameras in turn."""
        statistics = self._statistics()
        return all(find_split(statistics[part]) is not None for part in parts)

    def fit(self, part: Tensor, seed: int, share: Share) -> Proposal:
        """Fit one homogenizer. Raises what `fit_on_device` raises."""
        context, started = self._context, time.perf_counter()
        fitted, device = fit_on_device(
            context.fit_device,
            context.backend.name,
            context.frozen.module,
            context.frames(self._images[part.numpy()]),
            reference=self._clean and self._clean.statistics,
            source=self._clean and self._clean.source,
            limits=context.limits,
            corrections=self._corrections,
            seed=seed,
            progress=lambda done, of, _: self._report(share.at(done / of)),
            clock=time.perf_counter,
        )
        return Proposal(fitted.homogenizer.eval(), (fitted,), device, time.perf_counter() - started)

    def fit_split(self, part: Tensor, seed: int, share: Share) -> Proposal:
        """Fit one homogenizer to each of the two cameras that a part of the frames is of (`sees_two_cameras`)."""
        statistics = self._statistics()
        rule = find_split(statistics[part])
        assert rule is not None
        in_second = statistics @ rule[1:] > rule[0]
        groups = zip((part & ~in_second, part & in_second), share.halves(), strict=True)
        first, second = (self.fit(group, seed, half) for group, half in groups)
        (one,), (other,) = first.fits, second.fits
        split = SplitHomogenizer.of(rule, one.homogenizer, other.homogenizer)
        return Proposal(split, (one, other), second.device, first.seconds + second.seconds)

    def _statistics(self) -> Tensor:
        return torch.cat([frame_statistics(frames) for frames in self.chunks()])
