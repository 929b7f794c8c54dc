"""Alarms on streams of windows: recald's with and without a baseline, and what others offer."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import torch
from scipy.stats import ks_2samp

from bench.drift.replay import WINDOW, Recorded
from calibrate.baseline.baseline import Baseline, SensorState
from calibrate.features.statistics import FeatureStatistics
from calibrate.scoring.drift import drift_score
from daemon.config import DriftConfig
from daemon.recalibration.drift_alarm import DriftAlarm

WINDOW_S = WINDOW / 30  # at 30 frames/s
RIVER = "river"  # need not be installed


class Alarm(Protocol):
    """Takes in windows one after the other."""

    def __call__(self, frames: Recorded, rows: np.ndarray) -> bool:
        """Return whether there is an alarm after the window of these frames."""


class WithBaseline:
    """recald's alarm where a baseline is known."""

    def __init__(self, baseline: Baseline, config: DriftConfig):
        self._baseline = baseline
        self._alarm, self._now = DriftAlarm(config), 0.0

    def __call__(self, frames: Recorded, rows: np.ndarray) -> bool:
        return self.observe(self._baseline.compare(frames.statistics[torch.from_numpy(rows)]))

    def observe(self, state: SensorState) -> bool:
        """Return whether there is an alarm after a window of this state; the drift score decides nothing here."""
        self._now += WINDOW_S
        return self._alarm.observe(0.0, state, True, self._now)


class ByScore:
    """recald's alarm without a baseline: the drift score above its threshold for some seconds."""

    def __init__(self, reference: FeatureStatistics, config: DriftConfig):
        self._reference, self._alarm, self._now = reference, DriftAlarm(config), 0.0

    def __call__(self, frames: Recorded, rows: np.ndarray) -> bool:
        self._now += WINDOW_S
        score = drift_score(frames.moments_of(rows), self._reference).score
        return self._alarm.observe(score, None, True, self._now)


class TwoSampleTest:
    """Kolmogorov and Smirnov's test of each value of a frame against healthy frames, Bonferroni-corrected.

    As Rabanser et al. 2019, "Failing loudly", compare the class probabilities (BBSDs), and simple pixel statistics.
    values: of recorded frames, (N, V). level: of a false alarm a window.
    """

    def __init__(self, values: Callable[[Recorded], torch.Tensor], healthy: Recorded, level: float):
        self._values, self._level = values, level
        self._healthy = np.sort(values(healthy).numpy(), 0)

    def __call__(self, frames: Recorded, rows: np.ndarray) -> bool:
        found = self._values(frames).numpy()[rows]
        count = found.shape[1]
        return any(
            ks_2samp(found[:, value], self._healthy[:, value], method="asymp").pvalue < self._level / count
            for value in range(count)
        )


class OnMeans:
    """A detector of river on the mean confidence of windows; an alarm is one detected change."""

    def __init__(self, detector: Any):
        self._detector = detector

    def __call__(self, frames: Recorded, rows: np.ndarray) -> bool:
        confidence = frames.logits[torch.from_numpy(rows)].softmax(1).max(1).values.mean()
        self._detector.update(float(confidence))
        return bool(self._detector.drift_detected)


def probabilities(frames: Recorded) -> torch.Tensor:
    """Return the class probabilities of frames, (N, K)."""
    return frames.logits.softmax(1)


def levels(frames: Recorded) -> torch.Tensor:
    """Return the mean grey level of each colour, (N, C)."""
    return frames.levels


def river_detectors() -> dict[str, Callable[[], Alarm]]:
    """Return makers of river's detectors with their own settings; {} where it is not installed."""
    try:
        drift = importlib.import_module(f"{RIVER}.drift")
    except ImportError:
        return {}
    return {
        "ADWIN on confidence": lambda: OnMeans(drift.ADWIN()),
        "Page-Hinkley on confidence": lambda: OnMeans(drift.PageHinkley()),
    }
