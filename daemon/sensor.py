"""All that belongs to one camera stream while the daemon runs."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from calibrate.drift import DriftDetector
from daemon.recalibrator import Recalibrator
from daemon.reservoir import Reservoir
from deploy.path import InferencePath, Prepared


@dataclass(frozen=True)
class Candidate:
    """A proven homogenizer on its way to serve, and the version it was found better than."""

    prepared: Prepared
    incumbent: str


@dataclass
class Sensor:
    """Owned by the frame thread; other threads only read `reservoir` and `path.version`."""

    name: str
    path: InferencePath
    reservoir: Reservoir
    detector: DriftDetector
    recalibrator: Recalibrator
    drift_score: float = math.nan  # of the frames as served; NaN until first observed
    hold: bool = False  # the newest frame's request: no swap now
    waiting: Candidate | None = None  # to be committed between two frames
    frames: int = 0
    last_result: str = field(default="none yet")  # of the last fit, for the operator

    def status(self) -> dict[str, Any]:
        """Plain values for `recald status`."""
        return {
            "state": self.recalibrator.state.value,
            "progress": round(self.recalibrator.progress, 3),
            "homogenizer": self.path.version,
            "drift_score": None if math.isnan(self.drift_score) else round(self.drift_score, 3),
            "drift_alarm": self.detector.alarm,
            "frames": self.frames,
            "collected": self.reservoir.collected,
            "hold": self.hold,
            "last_fit": self.last_result,
        }
