"""Run a frame through ρ and Φ, and exchange ρ between two frames."""

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
from deploy.frame_gaps import FrameGaps
from deploy.store.artefacts import FACTORY

PROOF_WARM_UP_RUNS = 3  # after these, lazy allocation, kernel choice and graph capture are over
# ρ corrects a camera. Three stops of exposure are a gain of 8. An output further from the centre of the golden frames
# than ten times their span is therefore no camera correction.
MAX_REACH_SPANS = 10.0
# One unit of Φ's input is one standard deviation of the training images. This minimum leaves room for a correction
# where the golden frames have no contrast.
MIN_GOLDEN_SPAN = 1.0


class InferenceResult(NamedTuple):
    """Φ's output, and the version of the ρ that was in front of Φ."""

    output: np.ndarray
    homogenizer: str


class InferenceError(RuntimeError):
    """ρ or Φ failed on a frame, or ρ made the output not finite. The frame has no output."""


class SwapRejected(RecaldError):
    """The new ρ failed its proof. It is closed, and the active ρ keeps serving."""


@dataclass(frozen=True)
class PreparedHomogenizer:
    """A ρ that `InferencePath.prepare` has proven. `runner` is None for the factory homogenizer.

    `cost_s`: how long this ρ took for one frame during the proof.
    """

    version: str
    runner: Runner | None
    cost_s: float = 0.0


class InferencePath:
    """The path of one sensor's frames: the active ρ, then Φ.

    Any thread may call `prepare` and `wait_for_turn`. Only the frame thread may call the other methods. The runner of Φ
    is shared by all sensors and stays open. The path closes the ρ runners that it received in `prepare`, by calling
    `closer`; give a `closer` that defers the work if closing takes longer than a frame allows.
    """

    def __init__(
        self,
        model: Runner,
        *,
        closer: Callable[[Runner], None] = lambda runner: runner.close(),
        clock: Callable[[], float] = time.perf_counter,
        gaps: FrameGaps | None = None,
    ) -> None:
        """gaps: shared by all paths whose frames share a processor or a GPU; by default this path is alone."""
        self._gaps = gaps or FrameGaps()
        self._model = model
        self._closer = closer
        self._clock = clock
        self._active = PreparedHomogenizer(FACTORY, None)
        self._previous: PreparedHomogenizer | None = None
        self._closed = False

    @property
    def version(self) -> str:
        """The version of the active ρ."""
        return self._active.version

    @property
    def cost_s(self) -> float:
        """How long the active ρ took for one frame during its proof."""
        return self._active.cost_s

    @property
    def fallback(self) -> str:
        """The version that serves after a rollback."""
        return FACTORY if self._previous is None else self._previous.version

    def wait_for_turn(self) -> None:
        """Wait for a moment in which the run of one frame, of a ρ that does not serve, delays hardly any other."""
        self._gaps.wait_for_turn()

    def infer(self, batch: np.ndarray) -> InferenceResult:
        """Compute Φ(ρ(batch)) for a batch (N, C, H, W), float32, in Φ's normalised input space.

        Raises InferenceError if a runner fails, or if the output behind a ρ is not finite.
        """
        active = self._active  # read once, so that version and runner belong together
        self._gaps.begin_frame()
        try:
            output = _run_chain(active.runner, self._model, batch)
        except RuntimeError as error:
            raise InferenceError(str(error)) from error
        finally:
            self._gaps.end_frame()
        if active.runner is not None and not np.isfinite(output).all():
            raise InferenceError(f"homogenizer {active.version[:12]} made the model's output not finite")
        return InferenceResult(output, active.version)

    def prepare(
        self,
        version: str,
        runner: Runner | None,
        golden: np.ndarray,
        eager: nn.Module | None = None,
        *,
        bounded: bool = True,
    ) -> PreparedHomogenizer:
        """Warm up a new ρ and prove it on golden frames (N, C, H, W), float32, one by one between the camera's frames.

        With `eager`, the outputs must also equal those of this module. bounded: the golden frames are as bright as the
        camera's, and ρ may not leave their range. Pass the returned value to `commit` or to `discard`. Raises
        SwapRejected if the proof fails; `runner` is closed after any exception.
        """
        if runner is None:
            return PreparedHomogenizer(version, None)
        with ExitStack() as on_failure:
            on_failure.callback(self._closer, runner)
            try:
                cost_s = self._prove(version, runner, golden, bounded)
                if eager is not None:
                    check_parity(runner, eager, torch.from_numpy(golden), before_each=self.wait_for_turn)
                self.wait_for_turn()  # so that the exchange is not beside the last run of the proof
            except ParityError as error:
                raise SwapRejected(f"homogenizer {version[:12]} is not what it was compiled from: {error}") from error
            except RuntimeError as error:
                raise SwapRejected(f"homogenizer {version[:12]} does not run: {error}") from error
            on_failure.pop_all()
        return PreparedHomogenizer(version, runner, cost_s)

    def commit(self, prepared: PreparedHomogenizer) -> float:
        """Make `prepared` the active ρ from the next frame on; returns the duration of the exchange (s).

        The ρ that was active is kept for `rollback`. The ρ before that one is closed. Raises RuntimeError if the path
        is closed.
        """
        if self._closed:
            self.discard(prepared)
            raise RuntimeError("the path is closed")
        start = self._clock()
        retired, self._previous, self._active = self._previous, self._active, prepared
        if retired is not None:
            self.discard(retired)
        return self._clock() - start

    def rollback(self) -> str:
        """Make the previous ρ the active one, or the factory homogenizer if there is none; returns its version."""
        failed, self._active = self._active, self._previous or PreparedHomogenizer(FACTORY, None)
        self._previous = None
        self.discard(failed)
        return self._active.version

    def discard(self, prepared: PreparedHomogenizer) -> None:
        """Close a prepared ρ that will not serve."""
        if prepared.runner is not None:
            self._closer(prepared.runner)

    def replace_model(self, model: Runner) -> None:
        """Use another runner of Φ from the next frame on. The caller closes the old one."""
        self._model = model

    def close(self) -> None:
        """Close both ρ runners, after the last frame. Later calls of `commit` are refused."""
        self._closed = True
        self.rollback()
        self.rollback()

    def _prove(self, version: str, runner: Runner, golden: np.ndarray, bounded: bool) -> float:
        """Run ρ and Φ on each golden frame; returns the shortest time of ρ for one frame (s).

        Other work on the machine only makes a run longer, so the shortest run shows the cost of ρ itself.
        """
        for _ in range(PROOF_WARM_UP_RUNS):
            self.wait_for_turn()
            self._model.run(runner.run(golden[:1]))
        durations = []
        for frame in np.split(golden, len(golden)):  # one by one, as frames are served
            self.wait_for_turn()
            start = self._clock()
            homogenized = runner.run(frame)
            durations.append(self._clock() - start)
            fault = _shape_fault(homogenized, golden) or (_range_fault(homogenized, golden) if bounded else None)
            if fault is None and not np.isfinite(_run_chain(runner, self._model, frame)).all():
                fault = "makes the frozen model's output not finite"
            if fault is not None:
                raise SwapRejected(f"homogenizer {version[:12]}: {fault}")
        return min(durations)


def _run_chain(homogenizer: Runner | None, model: Runner, batch: np.ndarray) -> np.ndarray:
    """Compute Φ(ρ(batch)). If both run on the GPU, the frame stays there between the two."""
    if homogenizer is None:
        return model.run(batch)
    if isinstance(homogenizer, GpuRunner) and isinstance(model, GpuRunner):
        return model.run_after(homogenizer, batch)
    return model.run(homogenizer.run(batch))


def _shape_fault(homogenized: np.ndarray, golden: np.ndarray) -> str | None:
    """Say what keeps ρ's output from being an image like the golden frames; None if it is one."""
    if homogenized.shape[1:] != golden.shape[1:] or homogenized.dtype != np.float32:
        return f"gives {homogenized.dtype} of shape {homogenized.shape[1:]} for frames of {golden.shape[1:]}"
    return None


def _range_fault(homogenized: np.ndarray, golden: np.ndarray) -> str | None:
    """Say how far ρ's output leaves the range of the golden frames; None if it does not."""
    low, high = float(golden.min()), float(golden.max())
    reach = MAX_REACH_SPANS * max(high - low, MIN_GOLDEN_SPAN)
    distance = float(np.abs(homogenized - (low + high) / 2).max())
    if not distance <= reach:  # also true for NaN
        return f"leaves the range of the golden frames: {distance:.3g} from their centre, at most {reach:.3g}"
    return None
