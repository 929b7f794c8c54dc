"""What a sensor's state machine is told about the world, and what it decides."""

from __future__ import annotations

from dataclasses import dataclass

from daemon.states import Result

# What a recalibration that is wanted may wait for: labels of recald_calibration_waits.
WAIT_REASONS = ("approval", "hold", "turn", "classes", "budget", "back_off")


@dataclass(frozen=True)
class Facts:
    """What a decision depends on.

    alarm: of the drift detector. label_shift: few classes are in view, and the model is sure of them. raw_clean: the
    frames are clean without a homogenizer. harmful: they are clearly worse as served. collected: frames since
    collecting began. worker_free: a fit may start.
    hold_reason: why no new homogenizer may serve, or ""; the way back, to the one before or to none, stays open.
    latency_problem: how much slower than expected a frame is, or "". unwatched: why there is no drift score although
    frames come, or ""; `alarm` then says nothing. silent: the camera has stopped. missed_comparisons: how many the
    newest frames were enough for, and that did not come. check_period: s from one drift check to the next.
    """

    alarm: bool = False
    label_shift: bool = False
    raw_clean: bool = False
    harmful: bool = False
    collected: int = 0
    worker_free: bool = True
    hold_reason: str = ""
    latency_problem: str = ""
    unwatched: str = ""
    silent: bool = False
    missed_comparisons: int = 0
    check_period: float = 0.0


@dataclass(frozen=True)
class Collect:
    """Start to collect frames. forget: drop the frames held so far first, they show an earlier camera state."""

    forget: bool


@dataclass(frozen=True)
class Recall:
    """Test whether an earlier homogenizer, or none, suits the newest frames."""


@dataclass(frozen=True)
class Fit:
    """Start the fit: enough frames are collected."""

    trigger: str  # "drift", "timer" or "operator"


@dataclass(frozen=True)
class Abort:
    """End a recalibration that has passed its deadline, while it collects frames or while a worker is busy with it."""

    reason: str


@dataclass(frozen=True)
class Commit:
    """Let the candidate serve from the next frame on."""


@dataclass(frozen=True)
class Discard:
    """Drop the candidate."""

    result: Result  # SHADOWED, REJECTED, REFUSED or TIMEOUT
    reason: str


@dataclass(frozen=True)
class ServeFactory:
    """Let the factory homogenizer serve: the active one harms the frames.

    keep_work: a recalibration goes on meanwhile, as its frames and champions stay what they are.
    """

    reason: str
    keep_work: bool = False


@dataclass(frozen=True)
class RollBack:
    """Let the homogenizer before the active one serve again."""

    reason: str  # "regress", "latency" or "unproven"
    detail: str = ""


Decision = Collect | Recall | Fit | Abort | Commit | Discard | ServeFactory | RollBack
