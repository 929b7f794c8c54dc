"""The drift of the last hour, bounded: the highest value of each 5 s, beside the line that it is compared with."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from typing import Any, NamedTuple

from calibrate.baseline.run_length import ALLOWANCE

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

    As DriftAlarm does: the deviation from the baseline where content like this is known, else the drift score.
    status: of one sensor, as `recald status --json` has it. stage: "homogenized", as served, or "raw".
    """
    camera = status["camera"].get(stage)
    if camera is not None and camera["known"] and camera["drift"] is not None:
        return DriftReading("camera", camera["drift"], ALLOWANCE)
    score = status["drift_score"] if stage == "homogenized" else status["raw_drift_score"]
    return None if score is None else DriftReading("score", score, threshold)


class DriftHistory:
    """Belongs to the frame thread; `points` may be given to any other, since it is replaced and never changed."""

    def __init__(self) -> None:
        self.points: tuple[DriftPoint, ...] = ()
        self._points: deque[DriftPoint] = deque(maxlen=MAX_POINTS)

    def add(self, served: float | None, raw: float | None, alarm: bool, now: float) -> None:
        """Add drifts of now as multiples of their lines; of one 5 s the highest stay. now: monotonic, s."""
        point = DriftPoint(number_at(now), _rounded(served), _rounded(raw), alarm)
        if self._points and self._points[-1].number == point.number:
            point = _merged(self._points.pop(), point)
        elif served is None and raw is None and not alarm:
            return  # the gap in the numbers says the same
        self._points.append(point)
        if not self.points or self.points[-1] != point:
            self.points = tuple(self._points)


def number_at(now: float) -> int:
    """Return the number of the 5 s that the monotonic time `now` lies in."""
    return int(now // POINT_S)


def _merged(one: DriftPoint, other: DriftPoint) -> DriftPoint:
    served, raw = _highest(one.served, other.served), _highest(one.raw, other.raw)
    return DriftPoint(one.number, served, raw, one.alarm or other.alarm)


def _highest(*values: float | None) -> float | None:
    return max((value for value in values if value is not None), default=None)


def _rounded(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(f"{value:.4g}")
