"""The drift of the last hour, bounded: the mean of each 5 s, as a multiple of the line above which it is evidence."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from typing import Any, NamedTuple

from calibrate.baseline.baseline import SensorState
from calibrate.baseline.run_length import ALLOWANCE
from daemon.recalibration.drift_alarm import counted_drift

HISTORY_S = 3600
MAX_POINTS = 720  # of a sensor
POINT_S = HISTORY_S / MAX_POINTS


class DriftReading(NamedTuple):
    """A drift and the line above which it is evidence for the alarm. what: the quantity, a key of the page's words."""

    what: str
    value: float
    line: float

    @property
    def ratio(self) -> float:
        """Return the drift as a multiple of its line, at least 0."""
        return max(0.0, self.value / self.line)


class DriftPoint(NamedTuple):
    """One 5 s of a sensor. number: which, by the monotonic clock. ratios: None where no drift was known."""

    number: int
    served: float | None
    raw: float | None  # of the frames without a homogenizer
    alarm: bool


def reading(status: Mapping[str, Any], stage: str, threshold: float) -> DriftReading | None:
    """Return what decides about the alarm; None where no drift is known.

    As DriftAlarm does: the deviation from the baseline where there is one, else the drift score.
    status: of one sensor, as `recald status --json` has it. stage: "homogenized", as served, or "raw".
    """
    camera = status["camera"].get(stage)
    if camera is not None and camera["drift"] is not None:
        counted = counted_drift(SensorState(camera["drift"], camera["content"], camera["known"]))
        return DriftReading("camera", counted, ALLOWANCE)
    score = status["drift_score"] if stage == "homogenized" else status["raw_drift_score"]
    return None if score is None else DriftReading("score", score, threshold)


class DriftHistory:
    """Belongs to the frame thread; `points` may be given to any other, since it is replaced and never changed."""

    def __init__(self) -> None:
        self.points: tuple[DriftPoint, ...] = ()
        self._points: deque[DriftPoint] = deque(maxlen=MAX_POINTS)
        self._number = -1  # of the 5 s that the lists below belong to
        self._served: list[float] = []
        self._raw: list[float] = []
        self._alarm = False

    def add(self, served: float | None, raw: float | None, alarm: bool, now: float) -> None:
        """Add drifts of now as multiples of their lines. now: monotonic, s."""
        if self._number != number_at(now):
            self._number, self._served, self._raw, self._alarm = number_at(now), [], [], False
        for value, values in ((served, self._served), (raw, self._raw)):
            if value is not None and math.isfinite(value):
                values.append(value)
        self._alarm |= alarm
        if self._served or self._raw or self._alarm:  # else the gap in the numbers says the same
            self._set(DriftPoint(self._number, _mean(self._served), _mean(self._raw), self._alarm))

    def _set(self, point: DriftPoint) -> None:
        """Let it be the newest point; what is published changes only where it does."""
        if self._points and self._points[-1].number == point.number:
            self._points.pop()
        self._points.append(point)
        if not self.points or self.points[-1] != point:
            self.points = tuple(self._points)


def number_at(now: float) -> int:
    """Return the number of the 5 s that the monotonic time `now` lies in."""
    return int(now // POINT_S)


def _mean(values: list[float]) -> float | None:
    return float(f"{sum(values) / len(values):.4g}") if values else None
