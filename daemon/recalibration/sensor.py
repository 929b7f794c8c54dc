"""The state of one camera stream while the daemon runs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from calibrate.baseline.baseline import SensorState
from calibrate.estimate.estimator import Estimate
from calibrate.readouts.read_out import ReadOut
from daemon.frames.latency_monitor import LatencyMonitor
from daemon.frames.reservoir import Reservoir
from daemon.frames.stall_detector import StallDetector
from daemon.levels import WHOLE_WORDS, PixelValues
from daemon.recalibration.accuracy_average import AccuracyAverage
from daemon.recalibration.check_watch import CheckWatch
from daemon.recalibration.drift_alarm import DriftAlarm
from daemon.recalibration.labelled import LabelledFrames
from daemon.recalibration.page_frame import PageFrame
from daemon.recalibration.state_machine import StateMachine
from daemon.recalibration.work_time import WorkTime
from daemon.states import AT_REST, HOLD_MEANING, WITH_CANDIDATE, State
from deploy.path import InferencePath, PreparedHomogenizer
from deploy.store.artefacts import FACTORY


@dataclass(frozen=True)
class Candidate:
    """A proven homogenizer that does not serve yet. champion: the version that it was judged better than.

    recalled: it is an earlier homogenizer of this sensor, or the factory one.
    """

    prepared: PreparedHomogenizer
    champion: str
    recalled: bool = False


class Challenger(NamedTuple):
    """The version that drift checks compare with the active one."""

    role: Literal["candidate", "previous"]
    version: str


@dataclass
class Sensor:
    """The frame thread alone changes it.

    Drift checks read `reservoir`, `path.version`, `challenger`, `may_be_healthy`, `relearn` and `pixel_values` from
    their thread; a recalibration reads `reservoir`, and `path` prepares a homogenizer there; the control thread reads
    `status()`.
    """

    name: str
    path: InferencePath
    reservoir: Reservoir
    drift_detector: DriftAlarm
    state_machine: StateMachine
    work_time: WorkTime = field(default_factory=WorkTime)
    pixel_values: PixelValues = WHOLE_WORDS
    latency_monitor: LatencyMonitor = field(default_factory=LatencyMonitor)
    stall_detector: StallDetector = field(default_factory=StallDetector)
    check_watch: CheckWatch = field(default_factory=CheckWatch)
    accuracy: AccuracyAverage = field(default_factory=AccuracyAverage)
    labelled: LabelledFrames = field(default_factory=LabelledFrames)
    checked_up_to: int = 0  # `reservoir.added` at the last drift check that ended well
    unwatched: str = ""  # why there is no drift score although frames come
    silent_s: float = 0.0  # time without a frame; 0 while the camera is not considered stopped
    drift_score: float = math.nan  # of the frames as served; NaN when unknown
    camera: dict[str, SensorState] = field(default_factory=dict)  # beside the baselines, by stage
    read_outs: tuple[ReadOut, ...] = ()  # what happened to the camera, beyond its natural variation
    drifted: tuple[str, ...] = ()  # the same in words, while the drift alarm lasts
    learned: float = 0.0  # how far the baseline of what serves is learned, 0 to 1
    relearn: bool = False  # the next drift check forgets the baselines that were learned
    tested_up_to: int = 0  # `reservoir.added` at the last window that the drift alarm has counted
    label_shift: bool = False  # few classes are in view, and the model is sure of them
    raw_clean: bool = False  # the frames are clean without a homogenizer
    harmful: bool = False  # the frames are clearly worse as served than without a homogenizer
    scores: dict[str, Any] = field(default_factory=dict)  # of the last drift check
    shown: PageFrame | None = None  # the newest frame, where people may see it and somebody looks
    hold: bool = False  # the newest frame asks for no new homogenizer
    operator_hold: str | None = ""  # why the operator allows no new one; "": allowed, None: not read from the log yet
    candidate: Candidate | None = None  # in the shadow or waiting for approval
    swap_begun: str = ""  # the version that is to serve next, once the audit log holds that
    raw_at_swap: float = math.nan  # drift score of the raw frames when what serves came to serve; NaN when recalled
    withdrawn: set[str] = field(default_factory=set)  # versions that failed on their own drift: no recall tries them
    set_aside: set[str] = field(
        default_factory=set
    )  # versions taken back: no recall tries them until the drift is over
    compared_up_to: int = 0  # `reservoir.added` when the challenger was last compared, or appeared
    recorded_state: State | None = None  # the newest state in the audit log
    frames: int = 0  # served
    job: int | None = None  # number of the newest recalibration
    aborted_job: int | None = None  # the newest one that was aborted: its result was told already
    last_result: str = field(default="none yet")  # of the last recalibration, for `recald status`

    @property
    def challenger(self) -> Challenger | None:
        """Return what drift checks compare with the active homogenizer, if anything."""
        state, candidate = self.state_machine.state, self.candidate
        if state in WITH_CANDIDATE and candidate is not None:
            return Challenger("candidate", candidate.prepared.version)
        return Challenger("previous", self.path.fallback) if state is State.PROBATION else None

    @property
    def watched_closely(self) -> bool:
        """Return whether the next drift check is waited for: a drift shows, or homogenizers are compared."""
        return self.challenger is not None or not self.drift_detector.over

    def forget_scores(self) -> None:
        """Forget the last drift check: what it saw says nothing about the frames of now."""
        self.drift_score, self.label_shift, self.raw_clean, self.harmful = math.nan, False, False, False
        self.accuracy.clear()
        self.camera, self.learned, self.read_outs, self.drifted = {}, 0.0, (), ()
        self.shown = None

    @property
    def may_be_healthy(self) -> bool:
        """Return whether the frames may be healthy ones, for all that is known but their own drift score.

        Without a baseline, scenes of few classes raise the alarm; they are healthy all the same.
        """
        alarm = self.drift_detector
        quiet = alarm.over if alarm.has_baseline else not alarm.alarm or self.label_shift
        return quiet and not self.silent_s and self.state_machine.state in AT_REST

    def estimated_accuracy(self, stage: str) -> Estimate | None:
        """Return the estimated accuracy on the raw or the homogenized frames; None if there is none.

        Frames of known class since the last swap and the last drift alarm count in it.
        """
        estimate = self.accuracy.of(stage)
        as_served = stage != "raw" or self.path.version == FACTORY  # as the labelled frames are
        return estimate.with_labels(*self.labelled.since_drift) if estimate and as_served else estimate

    @property
    def check_due(self) -> bool:
        """Return whether there are frames that no drift check has scored."""
        return self.reservoir.window_full and self.reservoir.added > self.checked_up_to

    @property
    def missed_comparisons(self) -> int:
        """Return for how many comparisons there are new frames."""
        return (self.reservoir.added - self.compared_up_to) // max(1, self.reservoir.window)

    def status(self) -> dict[str, Any]:
        """Return what `recald status` shows, JSON-able."""
        silence = f"no frames for {self.silent_s:.0f} s" if self.silent_s else ""
        held = f"held: {HOLD_MEANING}" if self.operator_hold else ""
        camera = camera_text(self.drifted)
        return {
            "state": self.state_machine.state.value,
            "progress": round(self.state_machine.progress, 3),
            "elapsed_s": _rounded(self.work_time.elapsed),
            "remaining_s": _rounded(self.work_time.remaining),
            "reason": "; ".join(filter(None, (silence, self.unwatched, self.state_machine.reason, held, camera))),
            "homogenizer": self.path.version,
            "drift_score": _known(self.drift_score),
            "raw_drift_score": _known(math.nan if math.isnan(self.drift_score) else self.scores.get("raw", math.nan)),
            "drift_evidence": None if self.unwatched else round(self.drift_detector.evidence, 3),
            "camera": {stage: _finite(state) for stage, state in self.camera.items()},
            "drifted": list(self.drifted),
            "baseline_ratio": round(self.learned, 3),
            "estimated_accuracy": _as_dict(self.estimated_accuracy("homogenized")),
            "drift_alarm": None if self.unwatched else self.drift_detector.alarm,
            "drift_checks": "failing" if self.unwatched else "stopped" if self.silent_s else "running",
            "frames": self.frames,
            "labelled": self.labelled.status(),
            "collected": self.reservoir.collected,
            "hold": self.hold or self.operator_hold != "",
            "candidate": None if (candidate := self.candidate) is None else candidate.prepared.version,
            "last_fit": self.last_result,
        }

    @property
    def status_line(self) -> str:
        """Return what `systemctl status` shows."""
        state, version = self.state_machine.state.value, self.path.version[:12]
        return f"{self.name}: {state}, drift {self.drift_score:.2f}, ρ {version}"


def camera_text(drifted: Sequence[str]) -> str:
    """Return what happened to the camera as the last part of a reason, or ""."""
    return f"the camera: {'; '.join(drifted)}" if drifted else ""


def _finite(state: SensorState) -> dict[str, float | bool | None]:
    """Return a state for JSON, which has no numbers that are not finite."""
    return {name: value if math.isfinite(value) else None for name, value in state._asdict().items()}


def _as_dict(estimate: Estimate | None) -> dict[str, float] | None:
    return estimate and {bound: round(number, 4) for bound, number in estimate._asdict().items()}


def _known(score: float) -> float | None:
    return None if math.isnan(score) else round(score, 3)


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 1)
