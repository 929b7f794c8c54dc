"""The estimated accuracy of a sensor: the mean of the newest drift checks that share no frame."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean

from calibrate.estimate.estimator import Estimate

WINDOWS = 8  # drift checks; a single one of 64 frames is off by several points


class AccuracyAverage:
    """The estimates for the raw frames and for the frames as served, by stage.

    The frame thread alone changes it; any thread may read it, since what is read is replaced as a whole.
    """

    def __init__(self) -> None:
        self._checks: tuple[dict[str, Estimate], ...] = ()
        self._up_to = 0  # `reservoir.added` at the newest check that counts
        self.ever_known = False  # whether there has been an estimate since the start

    def add(self, estimates: Mapping[str, Sequence[float]], added: int, frames: int) -> None:
        """Take in the estimates (value, lower, upper) by stage of a check of so many frames, unless it shares some.

        added: frames of the sensor up to this check. None at all, as under a label shift, leave nothing to average.
        """
        if not estimates:
            self.clear()
        elif not self._checks or added - self._up_to >= frames:
            check = {stage: Estimate(*numbers) for stage, numbers in estimates.items()}
            self._checks = (*self._checks, check)[-WINDOWS:]
            self._up_to = added
            self.ever_known = True

    def clear(self) -> None:
        """Forget all: another homogenizer serves, or the camera has stopped."""
        self._checks = ()

    def of(self, stage: str) -> Estimate | None:
        """Return the mean estimate for a stage; None if there is none."""
        found = [check[stage] for check in self._checks if stage in check]
        return Estimate(*(fmean(numbers) for numbers in zip(*found, strict=True))) if found else None
