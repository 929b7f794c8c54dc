"""The way of a frame through ρ and Φ, and the exchange of ρ between two frames."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from calibrate.errors import RecaldError
from deploy.backends.gpu.runner import GpuRunner
from deploy.backends.protocol import ParityError, Runner, check_parity
from deploy.store.artefacts import FACTORY

WARM_UPS = 3  # lazy allocation, kernel choice and graph capture are over by then
# ρ undoes a change of the camera. Three stops of exposure are a gain of 8; a ρ that reaches further than
# ten times what the golden frames span is no camera correction. One unit of Φ's input is one standard
# deviation of the training images, so that frames without contrast still leave room.
REACH = 10.0
LEAST_SPAN = 1.0


class Served(NamedTuple):
    """Φ's output and the version of the ρ that made it."""

    output: np.ndarray
    homogenizer: str


class SwapRejected(RecaldError):
    """The new ρ failed its proof; it is closed and the active one keeps serving."""


@dataclass(frozen=True)
class Prepared:
    """A ρ that may serve: proven by `InferencePath.prepare`; `runner` is None for the factory homogenizer.

    `cost` is what it took for a frame then (s).
    """

    version: str
    runner: Runner | None
    cost: float = 0.0


class InferencePath:
    """One sensor's path. All but `prepare` belongs to the frame thread, and `prepare` to any.

    The Φ runner `model` is shared and stays open; ρ runners handed to `prepare` are the path's to close,
    which it does through `closer` (give one that defers, where closing takes time a frame does not have).
    """

    def __init__(
        self,
        model: Runner,
        *,
        closer: Callable[[Runner], None] = lambda runner: runner.close(),
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._model = model
        self._closer = closer
        self._clock = clock
        self._active = Prepared(FACTORY, None)
        self._older: Prepared | None = None
        self._closed = False

    @property
    def version(self) -> str:
        return self._active.version

    @property
    def cost(self) -> float:
        """What the active ρ took for a frame when it was proven (s)."""
        return self._active.cost

    @property
    def fallback(self) -> str:
        """The version that a rollback lets serve."""
        older = self._older
        return FACTORY if older is None else older.version

    def infer(self, batch: np.ndarray) -> Served:
        """Φ(ρ(batch)) for (N, C, H, W) float32; RuntimeError when a runner fails or ρ leads to NaN or infinity."""
        active = self._active  # the only read: version and runner are of one exchange
        output = _through(active.runner, self._model, batch)
        if active.runner is not None and not np.isfinite(output).all():
            raise RuntimeError(f"homogenizer {active.version[:12]} made the model's output not finite")
        return Served(output, active.version)

    def prepare(
        self, version: str, runner: Runner | None, golden: np.ndarray, same_as: nn.Module | None = None
    ) -> Prepared:
        """Warm up and prove a new ρ on golden frames (N, C, H, W), else close it and raise SwapRejected.

        `same_as`: what its outputs have to equal there.

        What it returns must be given to `commit` or to `discard`.
        """
        if runner is None:
            return Prepared(version, None)
        with ExitStack() as on_failure:
            on_failure.callback(self._closer, runner)
            try:
                cost = self._prove(version, runner, golden)
                if same_as is not None:
                    check_parity(runner, same_as, torch.from_numpy(golden))
            except ParityError as error:
                raise SwapRejected(f"homogenizer {version[:12]} is not what it was compiled from: {error}") from error
            except RuntimeError as error:
                raise SwapRejected(f"homogenizer {version[:12]} does not run: {error}") from error
            on_failure.pop_all()
        return Prepared(version, runner, cost)

    def commit(self, prepared: Prepared) -> float:
        """Let `prepared` serve from the next frame on; returns how long that took (s).

        The ρ it follows is kept for `rollback`, the one before that is closed.
        """
        if self._closed:
            self.discard(prepared)
            raise RuntimeError("the path is closed")
        start = self._clock()
        retired, self._older, self._active = self._older, self._active, prepared
        if retired is not None:
            self.discard(retired)
        return self._clock() - start

    def exchange_model(self, model: Runner) -> None:
        """Let another runner of Φ serve from the next frame on; the one before is the caller's to close."""
        self._model = model

    def rollback(self) -> str:
        """Let the ρ before the active one serve again, or the factory one; returns its version."""
        failed, self._active, self._older = self._active, self._older or Prepared(FACTORY, None), None
        self.discard(failed)
        return self._active.version

    def discard(self, prepared: Prepared) -> None:
        """Close a prepared ρ that will not serve."""
        if prepared.runner is not None:
            self._closer(prepared.runner)

    def close(self) -> None:
        """Close both ρ runners, after the last frame; commits are refused from then on."""
        self._closed = True
        self.rollback()
        self.rollback()

    def _prove(self, version: str, runner: Runner, golden: np.ndarray) -> float:
        """What ρ takes for a frame (s), the least of all: other work makes it longer, nothing makes it shorter."""
        took = []
        for _ in range(WARM_UPS):
            self._model.run(runner.run(golden[:1]))
        for frame in np.split(golden, len(golden)):  # one by one, as frames are served
            began = self._clock()
            homogenized = runner.run(frame)
            took.append(self._clock() - began)
            problem = _problem(homogenized, golden) or _not_finite(_through(runner, self._model, frame))
            if problem:
                raise SwapRejected(f"homogenizer {version[:12]}: {problem}")
        return min(took)


def _through(homogenizer: Runner | None, model: Runner, batch: np.ndarray) -> np.ndarray:
    """Φ(ρ(batch)), without leaving the GPU in between where both are there."""
    if homogenizer is None:
        return model.run(batch)
    if isinstance(homogenizer, GpuRunner) and isinstance(model, GpuRunner):
        return model.run_after(homogenizer, batch)
    return model.run(homogenizer.run(batch))


def _problem(homogenized: np.ndarray, golden: np.ndarray) -> str | None:
    """What is wrong with ρ(frame) as an image in the range of the golden frames, if anything."""
    if homogenized.shape[1:] != golden.shape[1:] or homogenized.dtype != np.float32:
        return f"gives {homogenized.dtype} of shape {homogenized.shape[1:]} for frames of {golden.shape[1:]}"
    low, high = float(golden.min()), float(golden.max())
    reach = REACH * max(high - low, LEAST_SPAN)
    distance = float(np.abs(homogenized - (low + high) / 2).max())
    if not distance <= reach:  # also true for NaN
        return f"leaves the range of the golden frames: {distance:.3g} from their centre, at most {reach:.3g}"
    return None


def _not_finite(output: np.ndarray) -> str | None:
    return None if np.isfinite(output).all() else "makes the frozen model's output not finite"
