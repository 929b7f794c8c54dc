"""All that belongs to one camera stream while the daemon runs."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from calibrate.scoring.drift import DriftDetector
from daemon.frames.latency_monitor import LatencyMonitor
from daemon.frames.reservoir import Reservoir
from daemon.frames.stall_detector import StallDetector
from daemon.recalibration.state_machine import StateMachine
from daemon.states import WITH_CANDIDATE, State
from deploy.path import InferencePath, Prepared


@dataclass(frozen=True)
class Candidate:
    """A proven homogenizer on its way to serve, and the version it was found better than; recalled: one of the past."""

    prepared: Prepared
    champion: str
    recalled: bool = False


class Challenger(NamedTuple):
    """A version that does not serve: the candidate for it, or the one before."""

    role: Literal["candidate", "previous"]
    version: str


@dataclass
class Sensor:
    """Owned by the frame thread; other threads only read `reservoir` and `path.version`."""

    name: str
    path: InferencePath
    reservoir: Reservoir
    detector: DriftDetector
    state_machine: StateMachine
    latency_monitor: LatencyMonitor = field(default_factory=LatencyMonitor)  # of frames through `path`
    stall_detector: StallDetector = field(default_factory=StallDetector)  # of frames that were answered
    silent: float = 0.0  # for how long no frame came (s), 0 while that is nothing unusual
    drift_score: float = math.nan  # of the frames as served; NaN where none is known
    label_shift: bool = False  # few classes are in view, and the model is sure of them
    clean_without: bool = False  # the frames look clean with no homogenizer at all
    scores: dict[str, Any] = field(default_factory=dict)  # the last of the watch
    hold: bool = False  # the newest frame's request: no swap now
    operator_hold: str | None = ""  # why nothing may be swapped until an operator releases it; None: not yet known
    waiting: Candidate | None = None  # in the shadow; committed between two frames, or dropped
    withdrawn: set[str] = field(default_factory=set)  # versions that were taken back or dropped: not tried again
    looked_at: int = 0  # reservoir.added when the challenger was last compared, or came up
    told_state: State | None = None  # the last in the audit log
    frames: int = 0
    last_result: str = field(default="none yet")  # of the last fit, for the operator

    @property
    def challenger(self) -> Challenger | None:
        """What the drift watch shall compare with the one that serves."""
        state, waiting = self.state_machine.state, self.waiting
        if state in WITH_CANDIDATE and waiting is not None:
            return Challenger("candidate", waiting.prepared.version)
        return Challenger("previous", self.path.fallback) if state is State.PROBATION else None

    def status(self) -> dict[str, Any]:
        """Plain values for `recald status`."""
        return {
            "state": self.state_machine.state.value,
            "progress": round(self.state_machine.progress, 3),
            "reason": "; ".join(filter(None, (self._silence(), self.state_machine.reason))),
            "homogenizer": self.path.version,
            "drift_score": None if math.isnan(self.drift_score) else round(self.drift_score, 3),
            "drift_alarm": self.detector.alarm,
            "frames": self.frames,
            "collected": self.reservoir.collected,
            "hold": self.hold or self.operator_hold != "",
            "candidate": None if (waiting := self.waiting) is None else waiting.prepared.version,
            "last_fit": self.last_result,
        }

    def _silence(self) -> str:
        return f"no frames for {self.silent:.0f} s" if self.silent else ""
