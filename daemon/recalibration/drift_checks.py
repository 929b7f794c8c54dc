"""Takes in what drift checks found out about a sensor: scores, alarm, comparisons; and that none came."""

from __future__ import annotations

import logging
import math
from typing import Any

from calibrate.baseline.baseline import SensorState
from calibrate.estimate.estimator import Estimate
from calibrate.readouts.read_out import KINDS, ReadOut
from daemon.metrics import Metrics
from daemon.recalibration.drift_monitor import CheckFailure, DriftCheck
from daemon.recalibration.page_frame import PageFrame
from daemon.recalibration.sensor import Sensor
from daemon.state.audit_writer import AuditWriter

STAGES = ("raw", "homogenized")  # frames without a homogenizer, and as they are served
UNKNOWN_STATE = SensorState(math.nan, math.nan, known=False)
# Kinds and colours of recald_camera_read_out; a gain is that of a colour by that of green.
READ_OUTS = tuple((kind, colour) for kind in KINDS for colour in (("red", "blue") if kind == "gain" else ("",)))
MAX_EXPORTED_LAYERS = 64  # layer drift scores of a sensor, so that a deep network cannot flood the scrape

log = logging.getLogger(__name__)


class DriftChecks:
    """Changes sensors, on the frame thread alone."""

    def __init__(self, metrics: Metrics, audit_writer: AuditWriter):
        self._metrics = metrics
        self._audit_writer = audit_writer

    def take(self, sensor: Sensor, check: DriftCheck, now: float) -> None:
        """Take in the scores, unless they are from before a swap or a stop of the camera."""
        sensor.checked_up_to = max(sensor.checked_up_to, check.added)
        sensor.check_watch.succeeded(check.period)
        outdated = check.homogenizer != sensor.path.version or sensor.silent_s > 0
        self._metrics.drift_checks.labels(sensor.name, "outdated" if outdated else "done").inc()
        self._metrics.last_drift_check_timestamp_seconds.labels(sensor.name).set_to_current_time()
        if check.scores["relearned"]:
            sensor.relearn = False
        if not outdated:
            sensor.shown = PageFrame.of(check.scores, check.added)
            sensor.accuracy.add(check.scores["accuracy"], check.added, check.frames)
            new_window = check.added - sensor.tested_up_to >= check.frames
            if new_window:
                sensor.tested_up_to = check.added
            self._update_drift(sensor, check.scores, new_window, now)
            self._count_comparison(sensor, check)

    def check_watch(self, sensor: Sensor, now: float) -> None:
        """Show no score while drift checks fail: the last one says nothing about the frames of now."""
        before, sensor.unwatched = sensor.unwatched, sensor.check_watch.overdue(sensor.check_due, now)
        if sensor.unwatched and not before:
            log.error("%s: %s", sensor.name, sensor.unwatched)
            sensor.forget_scores()
            self._export_drift(sensor)
            self._export_scores(sensor, _as_nan(sensor.scores))
        elif before and not sensor.unwatched:
            log.info("%s: drift checks run again", sensor.name)
            self._export_drift(sensor)

    def _update_drift(self, sensor: Sensor, scores: dict[str, Any], new_window: bool, now: float) -> None:
        sensor.scores, sensor.drift_score = scores, scores["homogenized"]
        sensor.camera = {stage: SensorState(*state) for stage, state in scores["camera"].items()}
        sensor.learned, read = scores["learned"], scores["read_outs"]
        self._note_read_outs(sensor, tuple(ReadOut(*one) for one in read["found"]), tuple(read["words"]))
        sensor.label_shift, sensor.raw_clean = scores["label_shift"], scores["raw_clean"]
        sensor.harmful = scores["harmful"]
        detector, alarm_before = sensor.drift_detector, sensor.drift_detector.alarm
        detector.observe(sensor.drift_score, sensor.camera.get("homogenized"), new_window, now)
        if detector.alarm is not alarm_before:
            self._note_alarm(sensor, "drift alarm" if detector.alarm else "drift alarm over")
        if detector.over and sensor.drift_score <= detector.by_score.threshold:
            sensor.set_aside.clear()  # the drift is over
        self._export_drift(sensor)
        self._export_scores(sensor, scores)

    def _note_alarm(self, sensor: Sensor, event: str) -> None:
        """Log and record an alarm that is raised or over, and what decided on it."""
        sensor.labelled.drifted()
        camera = sensor.camera.get("homogenized")
        beside = f"{camera.drift:.1f} standard deviations beside healthy frames, " if camera else ""
        log.warning("%s: %s, %sscore %.2f", sensor.name, event, beside, sensor.drift_score)
        record = {"drift": _finite(camera.drift)} if camera else {}
        record |= {"score": _finite(sensor.drift_score)}
        self._audit_writer.record(sensor.name, event, record | {"homogenizer": sensor.path.version})

    def _note_read_outs(self, sensor: Sensor, found: tuple[ReadOut, ...], words: tuple[str, ...]) -> None:
        """Take in what happened to the camera; log and record it once in an alarm."""
        if words and not sensor.drifted:
            log.warning("%s: the camera: %s", sensor.name, "; ".join(words))
            self._audit_writer.record(sensor.name, "read-out", {"camera": list(words)})
        sensor.read_outs, sensor.drifted = found, words

    def _count_comparison(self, sensor: Sensor, check: DriftCheck) -> None:
        """Count a comparison if it is of today's challenger, and all its frames are newer than the one before."""
        compared, challenger = check.scores.get("challenger"), sensor.challenger
        if compared is None or challenger is None:
            return
        if (challenger.role, challenger.version) != (compared["role"], compared["version"]):
            return
        if check.added - sensor.compared_up_to < check.frames:
            return
        if compared["abstains"]:
            return
        sensor.compared_up_to = check.added
        sensor.state_machine.compared(not compared["objections"])
        if compared["objections"] and challenger.role == "candidate":
            log.info("%s: the candidate in the shadow: %s", sensor.name, compared["objections"])

    def check_silence(self, sensor: Sensor, now: float) -> None:
        """Forget the drift of a camera that has stopped: it shows none, and the next one may be another camera."""
        before, sensor.silent_s = sensor.silent_s, sensor.stall_detector.silence(now)
        if sensor.silent_s and not before:
            log.warning("%s: no frames for %.0f s", sensor.name, sensor.silent_s)
            sensor.tested_up_to = sensor.reservoir.added  # the next window that counts has none of the frames before
            self.reset(sensor)
            self._export_scores(sensor, _as_nan(sensor.scores))
        elif before and not sensor.silent_s:
            log.info("%s: frames arrive again", sensor.name)

    def reset(self, sensor: Sensor, keep_alarm: bool = False) -> None:
        """Start over: another homogenizer serves, or the camera has stopped."""
        sensor.forget_scores()
        if not keep_alarm:
            sensor.drift_detector.reset()
        self._export_drift(sensor)
        self.export_estimate(sensor)

    def _export_drift(self, sensor: Sensor) -> None:
        metrics, name = self._metrics, sensor.name
        metrics.drift_score.labels(name, "homogenized").set(sensor.drift_score)
        detector, unknown = sensor.drift_detector, bool(sensor.unwatched)
        metrics.drift_evidence_ratio.labels(name).set(math.nan if unknown else detector.evidence)
        metrics.drift_alarm.labels(name).set(math.nan if unknown else detector.alarm)
        metrics.narrow_view.labels(name).set(sensor.label_shift)

    def _export_scores(self, sensor: Sensor, scores: dict[str, Any]) -> None:
        metrics, name = self._metrics, sensor.name
        metrics.drift_score.labels(name, "raw").set(scores["raw"])
        for layer, score in list(scores["layers"].items())[:MAX_EXPORTED_LAYERS]:
            metrics.layer_drift_score.labels(name, layer).set(score)
        for proxy, value in scores["proxy"].items():
            metrics.accuracy_proxy_ratio.labels(name, proxy).set(value)
        metrics.baseline_progress_ratio.labels(name).set(sensor.learned)
        found = {(one.kind, one.colour): one.value for one in sensor.read_outs}
        for kind, colour in READ_OUTS:
            metrics.camera_read_out.labels(name, kind, colour).set(found.get((kind, colour), math.nan))
        for stage in STAGES:
            state = sensor.camera.get(stage, UNKNOWN_STATE)
            metrics.sensor_drift_deviations.labels(name, stage).set(state.drift)
            metrics.content_shift_score.labels(name, stage).set(state.content)
        self.export_estimate(sensor)

    def export_estimate(self, sensor: Sensor) -> None:
        """Show the estimates; NaN where there was one before. Without commissioning there never is one."""
        if not sensor.accuracy.ever_known:
            return
        for stage in STAGES:
            estimate = sensor.estimated_accuracy(stage)
            numbers = (math.nan,) * len(Estimate._fields) if estimate is None else estimate
            for bound, number in zip(Estimate._fields, numbers, strict=True):
                self._metrics.estimated_accuracy_ratio.labels(sensor.name, stage, bound).set(number)

    def note_failure(self, sensor: Sensor, failure: CheckFailure) -> None:
        """Count a check that gave no scores; log its reason when it is a new one."""
        self._metrics.drift_checks.labels(sensor.name, failure.result).inc()
        if sensor.check_watch.failed(failure.reason):
            log.warning("%s: a drift check failed: %s", sensor.name, failure.reason)


def _finite(value: float) -> float | None:
    """Return a number for JSON, which has none that are not finite."""
    return value if math.isfinite(value) else None


def _as_nan(scores: dict[str, Any]) -> dict[str, Any]:
    """Return the same scores, each NaN: a metric keeps its last value until it is set."""
    layers, proxies = scores.get("layers", {}), scores.get("proxy", {})
    return {"raw": math.nan, "layers": dict.fromkeys(layers, math.nan), "proxy": dict.fromkeys(proxies, math.nan)}
