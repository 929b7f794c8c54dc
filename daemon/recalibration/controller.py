"""What is done between two frames: scores and fits taken in, homogenizers swapped and rolled back, fits begun."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Any

from daemon.metrics import Metrics
from daemon.recalibration.drift_monitor import DriftCheck
from daemon.recalibration.job import JobProgress, JobResult, JobRunner
from daemon.recalibration.sensor import Sensor
from daemon.recalibration.state_machine import (
    Collect,
    Commit,
    Decision,
    Discard,
    Facts,
    Fit,
    Recall,
    RollBack,
    ServeFactory,
)
from daemon.state.audit_writer import AuditWriter
from daemon.state.restart import RestartState
from daemon.state.state_writer import StateWriter
from daemon.states import IN_WORK, Result, State
from deploy.path import Prepared
from deploy.store.artefacts import FACTORY

AWAITED = (State.COLLECTING, *IN_WORK)  # in which a recalibration's result means something
LAYERS_EXPORTED = 64  # layer drift scores, so that a deep network cannot flood the scrape

log = logging.getLogger(__name__)
Event = DriftCheck | JobProgress | JobResult | RestartState


class Controller:
    """Changes sensors, on the frame thread alone; `background` takes what would keep a frame waiting."""

    def __init__(
        self,
        recalibration: JobRunner,
        state_writer: StateWriter,
        frames: int,
        metrics: Metrics,
        background: Executor,
        record: AuditWriter,
        clock: Callable[[], float],
    ):
        self._jobs = recalibration
        self._state_writer = state_writer
        self._frames = frames
        self._metrics = metrics
        self._background = background
        self._record = record
        self._clock = clock

    def take_in(self, event: Event, sensor: Sensor, now: float) -> None:
        """Note what a worker has found out about a sensor."""
        if isinstance(event, DriftCheck):
            if event.homogenizer == sensor.path.version and not sensor.silent:  # else a swap or a stop came between
                self._observed(sensor, event.scores, now)
                self._compared(sensor, event)
        elif isinstance(event, RestartState):
            self._remembered(sensor, event, now)
        elif isinstance(event, JobProgress):
            self._observe_durations(sensor, event.durations)
            sensor.state_machine.progressed(State(event.stage), event.ratio)
        else:
            self._finished(sensor, event, now)

    def step(self, sensor: Sensor, now: float) -> None:
        """Do what has become due for a sensor."""
        self._listen(sensor, now)
        sensor.latency_monitor.counting = self._jobs.free
        decision = sensor.state_machine.step(now, self._facts(sensor))
        if decision is not None:
            self._carry_out(sensor, decision, now)
        self._tell_state(sensor)
        self.show_state(sensor)

    def roll_back(self, sensor: Sensor, reason: str, why: str = "") -> None:
        """Let the homogenizer before the active one serve again, or the factory one; `why` tells more of the reason."""
        self._drop_candidate(sensor, Result.OUTDATED)
        before, version = sensor.path.version, sensor.path.rollback()
        self._withdraw(sensor, before)
        told = f"{reason}, {why}" if why else reason
        log.warning("%s: rolled back to %s: %s", sensor.name, version[:12], told)
        self._metrics.rollbacks.labels(sensor.name, reason).inc()
        details = {"from": before, "to": version, "reason": reason} | ({"why": why} if why else {})
        self._record(sensor.name, "rollback", details)
        self._now_serving(sensor, "rollback")
        sensor.state_machine.rolled_back(version != FACTORY, self._clock(), f"rolled back: {told}")

    def show_homogenizer(self, sensor: Sensor, source: str) -> None:
        version = sensor.path.version
        self._metrics.set_homogenizer(sensor.name, version, FACTORY if version == FACTORY else source)

    def show_state(self, sensor: Sensor) -> None:
        self._metrics.calibration_state.labels(sensor.name).state(sensor.state_machine.state.value)
        self._metrics.calibration_progress_ratio.labels(sensor.name).set(sensor.state_machine.progress)

    def _listen(self, sensor: Sensor, now: float) -> None:
        """A camera that has stopped shows no drift, and the one that comes back may be another."""
        before, sensor.silent = sensor.silent, sensor.stall_detector.silence(now)
        if sensor.silent and not before:
            log.warning("%s: no frames for %.0f s", sensor.name, sensor.silent)
            self._forget_drift(sensor)
            self._show_scores(sensor, _unknown(sensor.scores))
        elif before and not sensor.silent:
            log.info("%s: frames come again", sensor.name)

    def _facts(self, sensor: Sensor) -> Facts:
        return Facts(
            alarm=sensor.detector.alarm,
            label_shift=sensor.label_shift,
            clean_without=sensor.clean_without,
            collected=sensor.reservoir.collected,
            fitter_free=self._jobs.free,
            held=self._held(sensor),
            slower=self._slower(sensor),
        )

    def _slower(self, sensor: Sensor) -> str:
        """How much longer than expected a frame takes through what is on probation; no ρ cannot be what takes long."""
        judged = sensor.state_machine.state is State.PROBATION and sensor.path.version != FACTORY
        return sensor.latency_monitor.slower if judged else ""

    def _held(self, sensor: Sensor) -> str:
        """Why nothing may be swapped now."""
        if self._record.failing:
            return "the audit log cannot be written, see the daemon's log"
        if sensor.operator_hold is None:
            return "the audit log is not yet read"
        if sensor.operator_hold:
            return f"{sensor.operator_hold}; `recald hold --release` ends it"
        return "the camera's side holds swaps" if sensor.hold else ""

    def _remembered(self, sensor: Sensor, past: RestartState, now: float) -> None:
        sensor.state_machine.spent([now - age for age in past.fits], [now - age for age in past.swaps])
        if sensor.operator_hold is not None:  # an operator was faster
            return
        sensor.operator_hold = past.hold
        if past.hold:
            log.warning("%s: nothing is swapped until `recald hold --release`: %s", sensor.name, past.hold)
            # Once more, so that no hold is pruned while it lasts.
            self._record(sensor.name, "order", {"order": "hold", "by": "recald", "reason": past.hold})

    def _observed(self, sensor: Sensor, scores: dict[str, Any], now: float) -> None:
        sensor.scores, sensor.drift_score = scores, scores["homogenized"]
        sensor.label_shift, sensor.clean_without = scores["label_shift"], scores["clean_without"]
        alarm = sensor.detector.alarm
        sensor.detector.observe(sensor.drift_score, now)
        if sensor.detector.alarm is not alarm:
            said = "drift alarm" if sensor.detector.alarm else "drift alarm over"
            score = sensor.drift_score if math.isfinite(sensor.drift_score) else None
            self._record(sensor.name, said, {"score": score, "homogenizer": sensor.path.version})
        self._show_drift(sensor)
        self._show_scores(sensor, scores)

    def _show_scores(self, sensor: Sensor, scores: dict[str, Any]) -> None:
        metrics, name = self._metrics, sensor.name
        metrics.drift_score.labels(name, "raw").set(scores["raw"])
        for layer, score in list(scores["layers"].items())[:LAYERS_EXPORTED]:
            metrics.layer_drift_score.labels(name, layer).set(score)
        for proxy, value in scores["proxy"].items():
            metrics.accuracy_proxy_ratio.labels(name, proxy).set(value)

    def _compared(self, sensor: Sensor, event: DriftCheck) -> None:
        """A look counts where the challenger is still the same, and all frames are new since the look before."""
        compared, challenger = event.scores.get("challenger"), sensor.challenger
        if (
            compared is None
            or challenger is None
            or (challenger.role, challenger.version) != (compared["role"], compared["version"])
        ):
            return
        if event.added - sensor.looked_at < event.frames:
            return
        sensor.looked_at = event.added
        sensor.state_machine.looked(not compared["objections"])
        if compared["objections"] and challenger.role == "candidate":
            log.info("%s: the candidate in the shadow: %s", sensor.name, compared["objections"])

    def _show_drift(self, sensor: Sensor) -> None:
        self._metrics.drift_score.labels(sensor.name, "homogenized").set(sensor.drift_score)
        self._metrics.drift_evidence.labels(sensor.name).set(sensor.detector.evidence)
        self._metrics.drift_alarm.labels(sensor.name).set(sensor.detector.alarm)
        self._metrics.narrow_view.labels(sensor.name).set(sensor.label_shift)

    def _finished(self, sensor: Sensor, event: JobResult, now: float) -> None:
        details: dict[str, Any] = {"result": event.result, "reason": event.reason}
        details |= {"trigger": sensor.state_machine.trigger, "dossier": event.dossier}
        if event.unfit is not None:
            self._withdraw(sensor, event.unfit)
            details["withdrawn"] = event.unfit
        if event.result is Result.UNKNOWN:
            log.info("%s: %s", sensor.name, event.reason)
        elif sensor.state_machine.state not in AWAITED:
            self._came_late(sensor, event, details)
        else:
            self._came_to(sensor, event, details, now)

    def _came_late(self, sensor: Sensor, event: JobResult, details: dict[str, Any]) -> None:
        """Another homogenizer came to serve meanwhile, or the drift was over: nobody waits for this result."""
        self._metrics.fits.labels(sensor.name, Result.OUTDATED).inc()
        self._record(sensor.name, "fit", details | {"result": Result.OUTDATED})
        if event.candidate is not None:
            sensor.path.discard(event.candidate.prepared)

    def _came_to(self, sensor: Sensor, event: JobResult, details: dict[str, Any], now: float) -> None:
        log.info("%s: recalibration %s: %s", sensor.name, event.result, event.reason)
        self._metrics.fits.labels(sensor.name, event.result).inc()
        self._observe_durations(sensor, event.durations or {})
        sensor.last_result = f"{event.result}: {event.reason}"
        if event.candidate is None:
            self._record(sensor.name, "fit", details)
            sensor.state_machine.finished(event.result, now, event.reason)
            return
        self._record(sensor.name, "fit", details | {"candidate": event.candidate.prepared.version})
        sensor.waiting = event.candidate
        if event.candidate.champion == sensor.path.version:
            sensor.looked_at = sensor.reservoir.added
            sensor.state_machine.proven(now)
        else:  # a rollback came between: nobody has compared the candidate with what serves now
            self._drop_candidate(sensor, Result.OUTDATED)
            sensor.state_machine.finished(Result.OUTDATED, now, "the candidate was judged against one that is gone")

    def _observe_durations(self, sensor: Sensor, durations: dict[str, float]) -> None:
        histograms = {
            "fit": self._metrics.fit_duration_seconds,
            "compile": self._metrics.compile_duration_seconds,
        }
        for stage, seconds in durations.items():
            histograms[stage].labels(sensor.name).observe(seconds)

    def _carry_out(self, sensor: Sensor, decision: Decision, now: float) -> None:
        if isinstance(decision, Collect):
            self._collect(sensor, decision)
        elif isinstance(decision, Fit):
            self._record(sensor.name, "fit begun", {"trigger": decision.trigger})  # also of one that ends the daemon
            self._jobs.start(sensor, decision.trigger, self._frames)
        elif isinstance(decision, Recall):
            self._jobs.start(sensor, sensor.state_machine.trigger, self._frames, recall=True)
        elif isinstance(decision, Commit):
            self._commit(sensor)
        elif isinstance(decision, Discard):
            self._drop_candidate(sensor, decision.result, decision.reason)
            sensor.last_result = f"{decision.result}: {decision.reason}"
            sensor.state_machine.finished(decision.result, now, decision.reason)
        elif isinstance(decision, ServeFactory):
            self._serve_factory(sensor)
        elif isinstance(decision, RollBack):
            self.roll_back(sensor, decision.reason, decision.why)

    def _collect(self, sensor: Sensor, decision: Collect) -> None:
        log.info("%s: collecting frames, because of %s", sensor.name, sensor.state_machine.trigger)
        if decision.afresh:
            forgotten = sensor.reservoir.mark()
            self._background.submit(forgotten.clear)  # freeing hundreds of frames takes longer than one may wait

    def _serve_factory(self, sensor: Sensor) -> None:
        self._drop_candidate(sensor, Result.OUTDATED)
        self._swap(sensor, Prepared(FACTORY, None), "the frames are clean without a homogenizer")

    def _commit(self, sensor: Sensor) -> None:
        assert sensor.waiting is not None
        candidate, sensor.waiting = sensor.waiting, None
        self._swap(sensor, candidate.prepared, "recalled" if candidate.recalled else "judged")

    def _swap(self, sensor: Sensor, prepared: Prepared, why: str) -> None:
        """The swap, between two frames."""
        before, added = sensor.path.version, prepared.cost - sensor.path.cost
        pause = sensor.path.commit(prepared)
        self._metrics.swap_pause_seconds.labels(sensor.name).observe(pause)
        self._metrics.swaps.labels(sensor.name, "committed").inc()
        details = {"from": before, "to": sensor.path.version, "why": why}
        self._record(sensor.name, "swap", details | {"pause": pause, "frames_served": sensor.frames})
        self._now_serving(sensor, "fit", added)
        sensor.looked_at = sensor.reservoir.added
        sensor.state_machine.committed(sensor.path.version != FACTORY, self._clock())
        log.info(
            "%s: homogenizer %s, %s, serves, pause %.0f us", sensor.name, sensor.path.version[:12], why, 1e6 * pause
        )

    def _drop_candidate(self, sensor: Sensor, result: Result, reason: str = "another serves by now") -> None:
        if sensor.waiting is None:
            return
        candidate, sensor.waiting = sensor.waiting, None
        sensor.path.discard(candidate.prepared)
        self._metrics.swaps.labels(sensor.name, result).inc()
        version = candidate.prepared.version
        # One of the past that is not right today may be another day.
        if result is Result.REFUSED or (result is Result.REJECTED and not candidate.recalled):
            self._withdraw(sensor, version)
        self._record(sensor.name, "candidate dropped", {"candidate": version, "result": result, "reason": reason})
        log.info("%s: candidate %s dropped, %s: %s", sensor.name, version[:12], result, reason)

    def _withdraw(self, sensor: Sensor, version: str) -> None:
        if version != FACTORY:
            sensor.withdrawn.add(version)
            self._state_writer.withdrawn(sensor.name, set(sensor.withdrawn))

    def _tell_state(self, sensor: Sensor) -> None:
        state, reason = sensor.state_machine.state, sensor.state_machine.reason
        if state is sensor.told_state:
            return
        sensor.told_state = state
        if state is State.INVALID:
            log.error("%s: %s", sensor.name, reason)
        self._record(sensor.name, "state", {"state": state.value, "reason": reason})

    def _now_serving(self, sensor: Sensor, source: str, added: float = 0.0) -> None:
        """What follows from another homogenizer: a drift check that starts anew, the metrics, the pointer on disk."""
        sensor.latency_monitor.swapped(added)
        self._forget_drift(sensor)
        self.show_homogenizer(sensor, source)
        self._state_writer.serves(sensor.name, sensor.path.version)

    def _forget_drift(self, sensor: Sensor) -> None:
        sensor.drift_score, sensor.label_shift, sensor.clean_without = math.nan, False, False
        sensor.detector.reset()
        self._show_drift(sensor)


def _unknown(scores: dict[str, Any]) -> dict[str, Any]:
    """The same scores, each NaN."""
    layers, proxies = scores.get("layers", {}), scores.get("proxy", {})
    return {"raw": math.nan, "layers": dict.fromkeys(layers, math.nan), "proxy": dict.fromkeys(proxies, math.nan)}
