"""`recald check`: one verdict on a camera, and why. Of a live sensor the status of its daemon decides."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from calibrate.baseline.run_length import ALLOWANCE
from calibrate.errors import RecaldError
from daemon.exit_codes import EX_BEYOND_REPAIR, EX_CONTENT_SHIFT, EX_DEGRADED, TemporaryError
from daemon.operator.terminal import printable
from daemon.operator.versions import short_version
from daemon.recalibration.state_machine import LABEL_SHIFT_REASON
from daemon.states import IN_WORK, WITH_CANDIDATE, Result, State


class Condition(str, Enum):
    """What is the matter with a camera: the words of the verdict."""

    OK = "OK"
    CONTENT_SHIFT = "CONTENT SHIFT"
    REPAIRABLE = "DEGRADED, repairable"
    UNDECIDED = "DEGRADED, not known whether repairable"
    NOT_REPAIRABLE = "DEGRADED, not repairable"


EXIT_CODES = {
    Condition.OK: 0,
    Condition.CONTENT_SHIFT: EX_CONTENT_SHIFT,
    Condition.REPAIRABLE: EX_DEGRADED,
    Condition.UNDECIDED: EX_DEGRADED,  # a recalibration is the next step here, too
    Condition.NOT_REPAIRABLE: EX_BEYOND_REPAIR,
}
REPAIRABLE = {Condition.REPAIRABLE: True, Condition.NOT_REPAIRABLE: False}  # else nobody knows

HELPED = (Result.ACCEPTED, Result.RECALLED, Result.FACTORY, Result.SHADOWED)  # a homogenizer was found that is better
DID_NOT_HELP = (Result.REJECTED, Result.REFUSED, Result.UNNEEDED)
UNDER_WAY = (State.COLLECTING, *IN_WORK)
BETTER_FOUND = (*WITH_CANDIDATE, State.PROBATION)
SAME_CAMERA = "the camera is as it was, what it shows is unusual; there is nothing to repair"
UNSEEN_CONTENT = "it shows content that hardly any healthy frame had, and no drift far beyond it"
LOCKED = "recalibrate.mode is locked, so that nothing is fitted; `recald check --model` tells it from pictures"


@dataclass(frozen=True)
class CameraVerdict:
    """The verdict on a camera. summary, reasons: why, for people. figures: for programs, JSON-able."""

    condition: Condition
    summary: str
    reasons: tuple[str, ...] = ()
    figures: dict[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Return what `--json` prints: `repairable` is null where that is not known."""
        return {
            "verdict": self.condition.value,
            "repairable": REPAIRABLE.get(self.condition),
            "exit_code": EXIT_CODES[self.condition],
            "summary": self.summary,
            "reasons": list(self.reasons),
            **self.figures,
        }


def tell(verdict: CameraVerdict, as_json: bool) -> int:
    """Print the verdict and return its exit code."""
    if as_json:
        print(json.dumps(verdict.as_dict()))
    else:
        print(printable(f"{verdict.condition.value}: {verdict.summary}"))
        for reason in verdict.reasons:
            print(printable(f"  {reason}"))
    return EXIT_CODES[verdict.condition]


def describe_camera(drift: float | None, content: float | None) -> Iterator[str]:
    """Yield what a comparison with healthy frames says.

    Arguments: as of calibrate.baseline.baseline.SensorState; None where they are not finite.
    """
    if drift is None or content is None:
        yield "camera: what the model sees of its frames is not finite"
        return
    yield f"camera: drift of {drift:.1f} standard deviations beside healthy frames; up to {ALLOWANCE:g} is clean"
    if drift <= ALLOWANCE:  # a drift moves the statistics along the directions of content, too
        yield f"content: {content:.2f} times as far as the most unusual of 200 healthy windows; from 1 on it is unusual"


def finite(value: float | None) -> float | None:
    """Return a number for JSON, which has none that are not finite."""
    return None if value is None or not math.isfinite(value) else round(value, 4)


# ---- a live sensor


def check_sensor(answer: dict[str, Any], name: str) -> CameraVerdict:
    """Judge a sensor by the answer of its daemon to the command status.

    Raises TemporaryError where no drift check has looked at its frames, RecaldError for a sensor that is unknown.
    """
    if name not in answer["sensors"]:
        raise RecaldError(f"unknown sensor {name!r}, configured are {', '.join(answer['sensors'])}")
    sensor = answer["sensors"][name]
    _require_checks(name, sensor)
    judge = _judge_alarm if sensor["drift_alarm"] else _judge_quiet
    condition, summary = judge(sensor, answer.get("mode", ""))  # an older daemon says less
    return CameraVerdict(condition, summary, tuple(_reasons(sensor)), _figures(name, sensor))


def _require_checks(name: str, sensor: dict[str, Any]) -> None:
    checks = sensor.get("drift_checks", "running")
    if sensor["drift_alarm"] is None or checks != "running":
        raise TemporaryError(f"{name}: {sensor['reason'] or f'drift checks are {checks}'}")
    if sensor["drift_score"] is None and not sensor["drift_alarm"]:
        raise TemporaryError(
            f"{name}: no drift check has a score yet, {sensor['frames']} frames were served: ask again"
        )


def _judge_alarm(sensor: dict[str, Any], mode: str) -> tuple[Condition, str]:
    """Tell from what recald has tried so far whether it can repair the camera. The state is newer than the last fit."""
    state, reason, last = sensor["state"], sensor["reason"], sensor["last_fit"]
    result = last.partition(":")[0]
    if LABEL_SHIFT_REASON in reason and _camera(sensor) is None:  # then the drift score alone has raised the alarm
        return Condition.CONTENT_SHIFT, LABEL_SHIFT_REASON
    if state == State.INVALID:
        return Condition.NOT_REPAIRABLE, reason
    if state in UNDER_WAY:
        return Condition.UNDECIDED, f"a recalibration is under way ({state} {sensor['progress']:.0%})"
    if state in BETTER_FOUND:
        return Condition.REPAIRABLE, reason or "a homogenizer was found that is better"
    if state == State.ROLLED_BACK:
        return Condition.NOT_REPAIRABLE, f"what was fitted was taken back: {reason}"
    if result in HELPED:
        return Condition.REPAIRABLE, f"the last fit helped, {last}"
    if result in DID_NOT_HELP:
        return Condition.NOT_REPAIRABLE, f"the last fit did not help, {last}"
    return Condition.UNDECIDED, LOCKED if mode == "locked" else reason or "a recalibration is due"


def _judge_quiet(sensor: dict[str, Any], _: str) -> tuple[Condition, str]:
    camera = _camera(sensor)
    if camera and not camera["known"]:
        return Condition.CONTENT_SHIFT, UNSEEN_CONTENT
    if camera and (camera["content"] or 0) > 1:
        return Condition.CONTENT_SHIFT, SAME_CAMERA
    if sensor["homogenizer"] != State.FACTORY:
        return Condition.OK, "no drift of the frames as they are served"
    return Condition.OK, "no drift"


def _reasons(sensor: dict[str, Any]) -> Iterator[str]:
    camera, raw = _camera(sensor), _camera(sensor, "raw")
    if camera:
        yield from describe_camera(camera["drift"], camera["content"])
    else:
        learned = sensor.get("baseline_ratio", 0.0)
        yield f"no baseline of healthy frames yet ({learned:.0%}): the drift score decides, which is coarser"
    yield from sensor.get("drifted", ())
    if sensor["drift_score"] is not None:
        yield f"drift score: {sensor['drift_score']:.2f}"
    if sensor["homogenizer"] != State.FACTORY:
        known = raw is not None and raw["drift"] is not None
        without = f"; without it {raw['drift']:.1f} standard deviations" if raw and known else ""
        yield f"homogenizer {short_version(sensor['homogenizer'])} serves{without}"
    if estimate := sensor.get("estimated_accuracy"):
        yield "estimated accuracy: {value:.1%}, {lower:.0%} to {upper:.0%}".format(**estimate)
    yield f"last fit: {sensor['last_fit']}"


def _figures(name: str, sensor: dict[str, Any]) -> dict[str, Any]:
    camera = _camera(sensor) or {}
    return {
        "sensor": name,
        "drift": finite(camera.get("drift")),
        "content": finite(camera.get("content")),
        "drift_score": sensor["drift_score"],
        "estimated_accuracy": sensor.get("estimated_accuracy"),
        "state": sensor["state"],
    }


def _camera(sensor: dict[str, Any], stage: str = "homogenized") -> dict[str, Any] | None:
    """Return how the frames lie beside the healthy ones; None without a baseline."""
    found: dict[str, Any] | None = sensor.get("camera", {}).get(stage)
    return found
