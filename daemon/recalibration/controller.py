"""Changes sensors between two frames: takes in scores and results, asks the state machine, carries out its decision."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from typing import Any

from daemon.metrics import Metrics
from daemon.recalibration.decisions import (
    Abort,
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
from daemon.recalibration.drift_checks import DriftChecks
from daemon.recalibration.drift_monitor import CheckFailure, DriftCheck
from daemon.recalibration.holds import hold_reason
from daemon.recalibration.job import JobProgress, JobResult, JobRunner
from daemon.recalibration.labelled import COUNTED_RESULTS
from daemon.recalibration.sensor import Sensor
from daemon.recalibration.state_machine import RESULT_EXPECTED, OrderRefused
from daemon.state.audit_writer import AuditWriter
from daemon.state.restart import RestartState
from daemon.state.state_writer import StateWriter
from daemon.states import HOLD_MEANING, IN_WORK, Result, State
from deploy.path import PreparedHomogenizer
from deploy.store.artefacts import FACTORY

STOP_REASON = "recald was stopped"
RECALLED = "recalled"  # why an earlier homogenizer serves, in the audit log
MAX_SAME_DRIFT_RATIO = 1.5  # of two scores of raw frames that count as one drift; windows of one camera differ by less
ANOTHER_SERVES = "another homogenizer serves by now"

log = logging.getLogger(__name__)
Event = DriftCheck | CheckFailure | JobProgress | JobResult | RestartState


class Controller:
    """Runs on the frame thread alone. `background` does what takes longer than a frame may wait."""

    def __init__(
        self,
        jobs: JobRunner,
        state_writer: StateWriter,
        frames: int,
        metrics: Metrics,
        background: Executor,
        audit_writer: AuditWriter,
        clock: Callable[[], float],
    ):
        """frames: how many a fit uses."""
        self._jobs = jobs
        self._state_writer = state_writer
        self._frames = frames
        self._metrics = metrics
        self._background = background
        self._audit_writer = audit_writer
        self._clock = clock
        self._drift = DriftChecks(metrics, audit_writer)

    def handle(self, event: Event, sensor: Sensor, now: float) -> None:
        """Take in what another thread has found out about a sensor."""
        if isinstance(event, DriftCheck):
            self._drift.take(sensor, event, now)
        elif isinstance(event, CheckFailure):
            self._drift.note_failure(sensor, event)
        elif isinstance(event, RestartState):
            self._restore(sensor, event, now)
        elif isinstance(event, JobProgress):
            self._export_durations(sensor, event.durations)
            sensor.state_machine.progressed(State(event.stage), event.ratio)
        else:
            self._handle_result(sensor, event, now)

    def step(self, sensor: Sensor, now: float) -> None:
        """Carry out what has become due for a sensor."""
        self._drift.check_silence(sensor, now)
        self._drift.check_watch(sensor, now)
        sensor.latency_monitor.counting = self._jobs.free
        decision = sensor.state_machine.step(now, self._facts(sensor))
        if decision is not None:
            self._carry_out(sensor, decision, now)
        sensor.work_time.update(sensor.state_machine.state, sensor.state_machine.progress, now)
        self._record_state(sensor)
        self.export_state(sensor)

    def roll_back(self, sensor: Sensor, reason: str, detail: str = "") -> None:
        """Let the homogenizer before the active one serve again, or the factory one. reason: a label of the metric."""
        self._drop_candidate(sensor, Result.OUTDATED)
        before, version = sensor.path.version, sensor.path.rollback()
        if reason in ("error", "latency") or (reason == "regress" and _fails_on_its_drift(sensor)):
            self._withdraw(sensor, before)
        elif before != FACTORY:
            sensor.set_aside.add(before)
        message = f"{reason}, {detail}" if detail else reason
        log.warning("%s: rolled back to %s: %s", sensor.name, version[:12], message)
        self._metrics.rollbacks.labels(sensor.name, reason).inc()
        details = {"from": before, "to": version, "reason": reason} | ({"why": detail} if detail else {})
        self._audit_writer.record(sensor.name, "rollback", details)
        self._after_exchange(sensor, "rollback")
        sensor.state_machine.rolled_back(version != FACTORY, self._clock(), f"rolled back: {message}")

    def stop(self, sensor: Sensor) -> None:
        """Record the end of what a stop of the daemon cuts off: a recalibration, or a candidate that never served."""
        if sensor.state_machine.state in IN_WORK:
            details = {"trigger": sensor.state_machine.trigger, "dossier": None}
            self._audit_writer.record(sensor.name, "fit", {"result": Result.STOPPED, "reason": STOP_REASON} | details)
        if sensor.candidate is not None:
            self._drop_candidate(sensor, Result.STOPPED, STOP_REASON)

    def restore(self, sensor: Sensor, version: str) -> None:
        """Bring a stored homogenizer back, through shadow and probation. Raises OrderRefused."""
        if version == sensor.path.version:
            raise OrderRefused(f"homogenizer {version[:12]} serves already")
        if not self._jobs.free:
            raise OrderRefused("a recalibration is running: try again when it is over")
        if not sensor.reservoir.window_full:
            raise OrderRefused("too few frames have come to prove a homogenizer on: try again later")
        sensor.state_machine.begin_restore(self._clock())
        sensor.set_aside.discard(version)
        if version in sensor.withdrawn:
            sensor.withdrawn.remove(version)
            self._state_writer.save_withdrawn(sensor.name, set(sensor.withdrawn))
        sensor.job = self._jobs.start(sensor, sensor.state_machine.trigger, self._frames, restore=version)

    def count_labels(self, sensor: Sensor, labels: Sequence[tuple[int, int]]) -> dict[str, int]:
        """Count frames by sequence number and true class; return how many had each result."""
        results = sensor.labelled.count(labels, sensor.path.version)
        for result in COUNTED_RESULTS:
            self._metrics.labelled_frames.labels(sensor.name, result).inc(results[result])
        self._export_labelled(sensor)
        self._drift.export_estimate(sensor)
        return results

    def export_homogenizer(self, sensor: Sensor, source: str) -> None:
        """Export which homogenizer serves, and its accuracy. source: where it came from, a label of the metric."""
        version = sensor.path.version
        self._metrics.set_homogenizer(sensor.name, version, FACTORY if version == FACTORY else source)
        self._export_labelled(sensor)

    def _export_labelled(self, sensor: Sensor) -> None:
        for bound, share in sensor.labelled.counts.accuracy._asdict().items():
            self._metrics.labelled_accuracy_ratio.labels(sensor.name, bound).set(share)

    def export_state(self, sensor: Sensor) -> None:
        """Export the state and its progress."""
        self._metrics.set_calibration_state(sensor.name, sensor.state_machine.state)
        self._metrics.calibration_progress_ratio.labels(sensor.name).set(sensor.state_machine.progress)

    # ---- results of recalibrations, and what a restart restores

    def _handle_result(self, sensor: Sensor, job: JobResult, now: float) -> None:
        details: dict[str, Any] = {"result": job.result, "reason": job.reason}
        details |= {"trigger": sensor.state_machine.trigger, "dossier": job.dossier}
        if job.unusable is not None:
            self._withdraw(sensor, job.unusable)
            details["withdrawn"] = job.unusable
        if job.job == sensor.aborted_job:
            self._discard(sensor, job)
        elif job.recall and job.result in (Result.UNKNOWN, Result.FAILED, Result.TIMEOUT):
            level = logging.INFO if job.result is Result.UNKNOWN else logging.WARNING
            log.log(level, "%s: no earlier homogenizer is recalled: %s", sensor.name, job.reason)
        elif sensor.state_machine.state not in RESULT_EXPECTED:
            self._drop_late_result(sensor, job, details)
        else:
            self._take_result(sensor, job, details, now)

    def _drop_late_result(self, sensor: Sensor, job: JobResult, details: dict[str, Any]) -> None:
        """Drop a result that nobody waits for: another homogenizer came to serve, or the drift was over."""
        self._metrics.count_fit(sensor.name, Result.OUTDATED)
        self._audit_writer.record(sensor.name, "fit", details | {"result": Result.OUTDATED})
        self._discard(sensor, job)

    def _discard(self, sensor: Sensor, job: JobResult) -> None:
        if job.candidate is not None:
            sensor.path.discard(job.candidate.prepared)

    def _take_result(self, sensor: Sensor, job: JobResult, details: dict[str, Any], now: float) -> None:
        log.info("%s: recalibration %s: %s", sensor.name, job.result, job.reason)
        version = "" if job.candidate is None else job.candidate.prepared.version
        self._metrics.count_fit(sensor.name, job.result, version)
        self._export_durations(sensor, job.durations or {})
        sensor.last_result = f"{job.result}: {job.reason}"
        if job.candidate is None:
            self._audit_writer.record(sensor.name, "fit", details)
            sensor.state_machine.finished(job.result, now, job.reason)
            return
        self._audit_writer.record(sensor.name, "fit", details | {"candidate": job.candidate.prepared.version})
        sensor.candidate, sensor.swap_begun = job.candidate, ""
        if job.candidate.prepared.version == sensor.path.version:
            sensor.candidate = None
            sensor.state_machine.finished(Result.UNNEEDED, now, job.reason)
        elif sensor.path.version in (job.candidate.champion, FACTORY):  # factory is a champion of every candidate
            sensor.compared_up_to = sensor.reservoir.added
            sensor.state_machine.candidate_ready(now, job.candidate.prepared.version == FACTORY)
        else:  # a rollback happened meanwhile: the candidate was never compared with what serves now
            self._drop_candidate(sensor, Result.OUTDATED)
            reason = "the candidate was judged against a homogenizer that no longer serves"
            sensor.state_machine.finished(Result.OUTDATED, now, reason)

    def _export_durations(self, sensor: Sensor, durations: dict[str, float]) -> None:
        metrics = self._metrics
        histograms = {"fit": metrics.fit_duration_seconds, "compile": metrics.compile_duration_seconds}
        for stage, seconds in durations.items():
            histograms[stage].labels(sensor.name).observe(seconds)

    def _restore(self, sensor: Sensor, restart: RestartState, now: float) -> None:
        sensor.state_machine.budget.restore([now - age for age in restart.fits], [now - age for age in restart.swaps])
        if sensor.operator_hold is not None:  # a newer order came first
            return
        sensor.operator_hold = restart.hold
        if restart.hold:
            log.warning("%s: %s; until `recald hold --release`: %s", sensor.name, HOLD_MEANING, restart.hold)
            # Recorded once more, so that the record of a hold is not pruned while the hold lasts.
            self._audit_writer.record(sensor.name, "order", {"order": "hold", "by": "recald", "reason": restart.hold})

    # ---- decisions

    def _facts(self, sensor: Sensor) -> Facts:
        # Only a fitted homogenizer on probation can be too slow; the factory homogenizer costs no time.
        timed = sensor.state_machine.state is State.PROBATION and sensor.path.version != FACTORY
        return Facts(
            alarm=sensor.drift_detector.alarm,
            label_shift=sensor.label_shift,
            raw_clean=sensor.raw_clean,
            harmful=sensor.harmful,
            collected=sensor.reservoir.collected,
            worker_free=self._jobs.free and not self._audit_writer.state_moved,  # else nobody could store the result
            hold_reason=hold_reason(sensor, self._audit_writer),
            latency_problem=sensor.latency_monitor.slower if timed else "",
            unwatched=sensor.unwatched,
            silent=sensor.silent_s > 0,
            missed_comparisons=sensor.missed_comparisons,
            check_period=sensor.check_watch.period,
        )

    def _carry_out(self, sensor: Sensor, decision: Decision, now: float) -> None:
        if isinstance(decision, Collect):
            self._collect(sensor, decision)
        elif isinstance(decision, Fit):
            # Recorded before the fit starts: a fit that ends the daemon counts against the budget, too.
            self._audit_writer.record(sensor.name, "fit begun", {"trigger": decision.trigger})
            log.info("%s: fit begun, trigger: %s", sensor.name, decision.trigger)
            sensor.job = self._jobs.start(sensor, decision.trigger, self._frames)
        elif isinstance(decision, Recall):
            sensor.job = self._jobs.start(sensor, sensor.state_machine.trigger, self._frames, recall=True)
        elif isinstance(decision, Abort):
            self._abort(sensor, decision.reason, now)
        elif isinstance(decision, Commit):
            self._commit(sensor)
        elif isinstance(decision, Discard):
            self._drop_candidate(sensor, decision.result, decision.reason)
            sensor.last_result = f"{decision.result}: {decision.reason}"
            sensor.state_machine.finished(decision.result, now, decision.reason)
        elif isinstance(decision, ServeFactory):
            if not decision.keep_work:
                self._drop_candidate(sensor, Result.OUTDATED)
            self._swap(sensor, PreparedHomogenizer(FACTORY, None), decision.reason, keep_work=decision.keep_work)
        elif isinstance(decision, RollBack):
            if sensor.path.version != FACTORY or self._has_begun(sensor, sensor.path.fallback):
                self.roll_back(sensor, decision.reason, decision.detail)

    def _commit(self, sensor: Sensor) -> None:
        candidate = sensor.candidate
        assert candidate is not None
        if self._has_begun(sensor, candidate.prepared.version):
            sensor.candidate = None
            self._swap(sensor, candidate.prepared, RECALLED if candidate.recalled else "judged")

    def _has_begun(self, sensor: Sensor, version: str) -> bool:
        """Return whether it is recorded that the swap to this version begins; else record it, and the swap waits.

        Without it, a crash or a full disk could leave a homogenizer that serves without a record.
        """
        if version in (FACTORY, sensor.swap_begun):  # the way to factory is never delayed
            return True
        sensor.swap_begun = version
        self._audit_writer.record(sensor.name, "swap begun", {"from": sensor.path.version, "to": version})
        return False

    def _abort(self, sensor: Sensor, reason: str, now: float) -> None:
        """End a recalibration that has passed its deadline; its end is told here, and not by a result that follows."""
        log.error("%s: recalibration %s: %s", sensor.name, Result.TIMEOUT, reason)
        self._jobs.abort(sensor.name)
        sensor.aborted_job = sensor.job
        self._metrics.count_fit(sensor.name, Result.TIMEOUT)
        details = {"result": Result.TIMEOUT, "reason": reason, "trigger": sensor.state_machine.trigger, "dossier": None}
        self._audit_writer.record(sensor.name, "fit", details)
        sensor.last_result = f"{Result.TIMEOUT}: {reason}"
        sensor.state_machine.finished(Result.TIMEOUT, now, reason)

    def _collect(self, sensor: Sensor, decision: Collect) -> None:
        log.info("%s: collecting frames, trigger: %s", sensor.name, sensor.state_machine.trigger)
        if decision.forget:
            frames = sensor.reservoir.reset_memory()
            self._background.submit(frames.clear)  # to free hundreds of frames takes longer than one frame may wait

    def _swap(self, sensor: Sensor, prepared: PreparedHomogenizer, why: str, keep_work: bool = False) -> None:
        """Exchange the homogenizer, and record, export and store what serves."""
        sensor.raw_at_swap = math.nan if why == RECALLED else sensor.scores.get("raw", math.nan)
        before, added_cost = sensor.path.version, prepared.cost_s - sensor.path.cost_s
        pause = sensor.path.commit(prepared)
        version = sensor.path.version
        self._metrics.swap_pause_seconds.labels(sensor.name).observe(pause, {"version": version})
        self._metrics.swaps.labels(sensor.name, "committed").inc(exemplar={"version": version})
        details = {"from": before, "to": version, "why": why}
        self._audit_writer.record(sensor.name, "swap", details | {"pause": pause, "frames_served": sensor.frames})
        self._after_exchange(sensor, "fit", added_cost, keep_alarm=keep_work)
        sensor.compared_up_to = sensor.reservoir.added
        sensor.state_machine.committed(version != FACTORY, self._clock(), keep_work)
        log.info("%s: homogenizer %s, %s, serves, pause %.0f us", sensor.name, version[:12], why, 1e6 * pause)

    def _after_exchange(self, sensor: Sensor, source: str, added_cost: float = 0.0, keep_alarm: bool = False) -> None:
        """Start drift and latency checks and the labelled frames anew, export the metrics, write the pointer.

        added_cost: s per frame. keep_alarm: a recalibration goes on because of it.
        """
        sensor.swap_begun = ""
        sensor.latency_monitor.swapped(added_cost)
        sensor.labelled.start_over()
        self._drift.reset(sensor, keep_alarm)
        self.export_homogenizer(sensor, source)
        self._metrics.last_swap_timestamp_seconds.labels(sensor.name).set_to_current_time()
        self._state_writer.save_active(sensor.name, sensor.path.version)

    def _drop_candidate(self, sensor: Sensor, result: Result, reason: str = ANOTHER_SERVES) -> None:
        if sensor.candidate is None:
            return
        candidate, sensor.candidate, sensor.swap_begun = sensor.candidate, None, ""
        sensor.path.discard(candidate.prepared)
        self._metrics.swaps.labels(sensor.name, result).inc()
        version = candidate.prepared.version
        # An earlier homogenizer that does not suit today's frames may suit another day's.
        own_drift = not candidate.recalled and not sensor.raw_clean
        if result is Result.REFUSED or (result is Result.REJECTED and own_drift):
            self._withdraw(sensor, version)
        elif version != FACTORY:
            sensor.set_aside.add(version)
        self._audit_writer.record(
            sensor.name, "candidate dropped", {"candidate": version, "result": result, "reason": reason}
        )
        log.info("%s: candidate %s dropped, %s: %s", sensor.name, version[:12], result, reason)

    def _withdraw(self, sensor: Sensor, version: str) -> None:
        """Never try this version again."""
        if version != FACTORY:
            sensor.withdrawn.add(version)
            self._state_writer.save_withdrawn(sensor.name, set(sensor.withdrawn))

    def _record_state(self, sensor: Sensor) -> None:
        state, reason = sensor.state_machine.state, sensor.state_machine.reason
        if state is sensor.recorded_state:
            return
        sensor.recorded_state = state
        if state is State.INVALID:
            log.error("%s: %s", sensor.name, reason)
        elif state is State.AWAITING_APPROVAL:
            log.warning("%s: a candidate waits for approval: %s", sensor.name, reason)
        self._audit_writer.record(sensor.name, "state", {"state": state.value, "reason": reason})


def _fails_on_its_drift(sensor: Sensor) -> bool:
    """Return whether the active homogenizer was found worse on frames like those that it was fitted to."""
    raw, before = sensor.scores.get("raw", math.nan), sensor.raw_at_swap
    return not sensor.raw_clean and max(raw, before) <= MAX_SAME_DRIFT_RATIO * min(raw, before)  # False for NaN
