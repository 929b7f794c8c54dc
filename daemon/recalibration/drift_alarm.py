"""Decides from drift checks whether a sensor's frames, as they are served, have drifted. No I/O in here."""

from __future__ import annotations

from calibrate.baseline.baseline import SensorState
from calibrate.baseline.run_length import ALLOWANCE, RunLengthTest
from calibrate.scoring.drift import DriftDetector
from daemon.config import DriftConfig

# What a window of unknown content counts as, at most: evidence fades slowly. A drift makes a network name classes that
# hardly any healthy frame had, so that known and unknown windows come in turn.
UNKNOWN_DRIFT = ALLOWANCE - 0.5
# From here on a window has drifted whatever it shows. Clean windows of one class that no healthy frame had lay up to
# 12.3 above the others (CIFAR-10, MNIST), those behind a lens far out of focus at 15 to 17.
FAR_DRIFT = 15.0
MIN_WINDOWS_TO_FALSE_ALARM = 100.0  # where checks are rarer than the alarms that are allowed


class DriftAlarm:
    """The drift alarm of one sensor.

    Where a baseline of healthy frames is known, windows of new frames are compared with it, and false alarms are as
    rare as configured; content that hardly any healthy frame showed raises none. Elsewhere the drift score decides, by
    the statistics shipped in the model: it takes scenes of few classes for a drift.
    """

    def __init__(self, config: DriftConfig):
        windows = config.false_alarms.interval / config.interval  # a window of new frames takes an interval at least
        self.by_score = DriftDetector(config.threshold, config.hold)
        self.by_baseline = RunLengthTest(max(windows, MIN_WINDOWS_TO_FALSE_ALARM))
        self.alarm = False
        self.has_baseline = False

    @property
    def evidence(self) -> float:
        """Return the evidence as a share of what raises the alarm, 0 to 1."""
        if self.has_baseline:
            return self.by_baseline.evidence
        return self.by_score.evidence / self.by_score.hold if self.by_score.hold else float(self.alarm)

    @property
    def over(self) -> bool:
        """Return whether nothing is left of a drift."""
        return not self.alarm and self.evidence == 0

    def observe(self, score: float, camera: SensorState | None, new_window: bool, now: float) -> bool:
        """Take in a check at monotonic time `now` (s); return whether there is an alarm.

        camera: beside the baseline; None where there is none. new_window: no frame of it was in a check that counted.
        """
        self.by_score.observe(score, now)
        if camera is None:
            self.alarm, self.has_baseline = self.by_score.alarm, False
            return self.alarm
        if not self.has_baseline:
            self.has_baseline = True
            self.by_baseline.reset()
        if new_window:
            self.by_baseline.observe(counted_drift(camera), camera.weight)
        self.alarm = self.by_baseline.alarm
        return self.alarm

    def reset(self) -> None:
        """Start again without evidence, because another homogenizer serves."""
        self.by_score.reset()
        self.by_baseline.reset()
        self.alarm = self.has_baseline = False


def counted_drift(camera: SensorState) -> float:
    """Return what a window counts as, in standard deviations."""
    if camera.known or not camera.drift < FAR_DRIFT:  # also where it is not finite
        return camera.drift
    return min(camera.drift, UNKNOWN_DRIFT)
