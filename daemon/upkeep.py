"""What is done between two frames: scores and fits taken in, homogenizers swapped and rolled back, fits begun."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Any

from daemon.metrics import Metrics
from daemon.recalibration import Finished, Progressed, Recalibration
from daemon.recalibrator import Collect, Fit, State
from daemon.sensor import Candidate, Sensor
from daemon.watch import Observed
from deploy.store import FACTORY, ArtefactStore, StoreError

LAYERS_EXPORTED = 64  # layer drift scores, so that a deep network cannot flood the scrape

log = logging.getLogger(__name__)
Event = Observed | Progressed | Finished


class Upkeep:
    """Changes sensors, on the frame thread alone; `background` takes what would keep a frame waiting."""

    def __init__(
        self,
        recalibration: Recalibration,
        store: ArtefactStore,
        model: str,
        frames: int,
        metrics: Metrics,
        background: Executor,
        clock: Callable[[], float],
    ):
        self._recalibration = recalibration
        self._store = store
        self._model = model
        self._frames = frames
        self._metrics = metrics
        self._background = background
        self._clock = clock

    def take_in(self, event: Event, sensor: Sensor, now: float) -> None:
        """Note what a worker has found out about a sensor."""
        if isinstance(event, Observed):
            if event.homogenizer == sensor.path.version:  # else a swap came between
                self._observed(sensor, event.scores, now)
        elif isinstance(event, Progressed):
            self._observe_durations(sensor, event.durations)
            sensor.recalibrator.progressed(State(event.stage), event.ratio)
        else:
            self._finished(sensor, event, now)

    def step(self, sensor: Sensor, now: float) -> None:
        """Do what has become due for a sensor."""
        self._commit_waiting(sensor)
        self._decide(sensor, now)
        self.show_state(sensor)

    def roll_back(self, sensor: Sensor, reason: str) -> None:
        """Let the homogenizer before the active one serve again, or the factory one."""
        version = sensor.path.rollback()
        log.warning("%s: rolled back to %s: %s", sensor.name, version[:12], reason)
        self._metrics.rollbacks.labels(sensor.name, reason).inc()
        self._now_serving(sensor, "rollback")
        sensor.recalibrator.rolled_back(version != FACTORY, self._clock())

    def show_homogenizer(self, sensor: Sensor, source: str) -> None:
        version = sensor.path.version
        self._metrics.set_homogenizer(sensor.name, version, FACTORY if version == FACTORY else source)

    def show_state(self, sensor: Sensor) -> None:
        self._metrics.calibration_state.labels(sensor.name).state(sensor.recalibrator.state.value)
        self._metrics.calibration_progress_ratio.labels(sensor.name).set(sensor.recalibrator.progress)

    def _observed(self, sensor: Sensor, scores: dict[str, Any], now: float) -> None:
        metrics, name = self._metrics, sensor.name
        sensor.drift_score = scores["homogenized"]
        sensor.detector.observe(sensor.drift_score, now)
        self._show_drift(sensor)
        metrics.drift_score.labels(name, "raw").set(scores["raw"])
        for layer, score in list(scores["layers"].items())[:LAYERS_EXPORTED]:
            metrics.layer_drift_score.labels(name, layer).set(score)
        for proxy, value in scores["proxy"].items():
            metrics.accuracy_proxy_ratio.labels(name, proxy).set(value)

    def _show_drift(self, sensor: Sensor) -> None:
        self._metrics.drift_score.labels(sensor.name, "homogenized").set(sensor.drift_score)
        self._metrics.drift_evidence.labels(sensor.name).set(sensor.detector.evidence)
        self._metrics.drift_alarm.labels(sensor.name).set(sensor.detector.alarm)

    def _finished(self, sensor: Sensor, event: Finished, now: float) -> None:
        log.info("%s: recalibration %s: %s", sensor.name, event.result, event.reason)
        self._metrics.fits.labels(sensor.name, event.result).inc()
        self._observe_durations(sensor, event.durations or {})
        sensor.last_result = f"{event.result}: {event.reason}"
        if event.candidate is not None:
            sensor.waiting = event.candidate
        else:
            sensor.recalibrator.finished(event.result, now)

    def _observe_durations(self, sensor: Sensor, durations: dict[str, float]) -> None:
        histograms = {
            "fit": self._metrics.fit_duration_seconds,
            "compile": self._metrics.compile_duration_seconds,
        }
        for stage, seconds in durations.items():
            histograms[stage].labels(sensor.name).observe(seconds)

    def _commit_waiting(self, sensor: Sensor) -> None:
        """The swap: between two frames, and not while the camera's side says hold."""
        if sensor.waiting is None or sensor.hold:
            return
        candidate, sensor.waiting = sensor.waiting, None
        if candidate.incumbent != sensor.path.version:
            self._refuse_outdated(sensor, candidate)
            return
        pause = sensor.path.commit(candidate.prepared)
        self._metrics.swap_pause_seconds.labels(sensor.name).observe(pause)
        self._metrics.swaps.labels(sensor.name, "committed").inc()
        self._now_serving(sensor, "fit")
        sensor.recalibrator.finished("factory" if sensor.path.version == FACTORY else "accepted", self._clock())
        log.info("%s: homogenizer %s serves, pause %.0f us", sensor.name, sensor.path.version[:12], 1e6 * pause)

    def _refuse_outdated(self, sensor: Sensor, candidate: Candidate) -> None:
        """A rollback came between: nobody has compared the candidate with what serves now."""
        sensor.path.discard(candidate.prepared)
        self._metrics.swaps.labels(sensor.name, "outdated").inc()
        sensor.recalibrator.finished("rejected", self._clock())
        log.info("%s: homogenizer %s was judged against one that is gone", sensor.name, candidate.prepared.version[:12])

    def _decide(self, sensor: Sensor, now: float) -> None:
        decision = sensor.recalibrator.step(
            now,
            alarm=sensor.detector.alarm,
            collected=sensor.reservoir.collected,
            fitter_free=self._recalibration.free,
        )
        if isinstance(decision, Collect):
            log.info("%s: collecting frames, because of %s", sensor.name, sensor.recalibrator.trigger)
            if decision.afresh:
                sensor.reservoir.mark()
        elif isinstance(decision, Fit):
            self._recalibration.start(sensor, decision.trigger, self._frames)

    def _now_serving(self, sensor: Sensor, source: str) -> None:
        """What follows from another homogenizer: a drift check that starts anew, the metrics, the pointer on disk."""
        sensor.drift_score = math.nan
        sensor.detector.reset()
        self._show_drift(sensor)
        self.show_homogenizer(sensor, source)
        self._background.submit(self._write_pointer, sensor.name, sensor.path.version)

    def _write_pointer(self, name: str, version: str) -> None:
        try:
            self._store.point(name, version, self._model, time.time())
        except (OSError, StoreError) as error:
            log.warning("%s: %s serves, but a restart will not know it: %s", name, version[:12], error)
