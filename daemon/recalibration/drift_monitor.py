"""Checks for drift: a thread sends the newest frames of every sensor to a worker process, which scores them."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from daemon.config import DriftConfig
from daemon.levels import WORD_BITS, enough_bits
from daemon.recalibration.check_watch import CHECK_PASS_TIMEOUT_S
from daemon.recalibration.sensor import Sensor
from daemon.worker.client import WorkerClient, WorkerError, WorkerTimeout
from deploy.store.artefacts import FACTORY

CHECK_RETRY_S = 10.0  # from a failed check to the next, so that a worker that dies at once costs little
PAUSE_TO_CHECK_RATIO = 4.0  # at least: checks of large frames then take at most a fifth of a core

log = logging.getLogger(__name__)


def check_request(sensor: Sensor, config: DriftConfig, fresh: int, now: float) -> dict[str, Any]:
    """Return what the worker is asked for in a check of the newest frames, as daemon.worker.observe_job reads it.

    fresh: how many of them no check has seen. now: monotonic, s.
    """
    job = {"job": "observe", "sensor": sensor.name, "active": sensor.path.version, "band": config.threshold}
    job |= {"fresh": fresh, "may_learn": sensor.may_be_healthy, "learn": config.learn, "now": now}
    job["alarm"] = sensor.drift_detector.alarm
    if (challenger := sensor.challenger) is not None:
        job |= {"challenger": challenger.version, "role": challenger.role}
    return job


@dataclass(frozen=True)
class DriftCheck:
    """Scores of one sensor's newest frames, and the homogenizer that served them.

    frames: how many were scored. added: `reservoir.added` when they were taken. period: s to the next check, about.
    """

    sensor: str
    homogenizer: str
    scores: dict[str, Any]
    frames: int = 0
    added: int = 0
    period: float = 0.0


@dataclass(frozen=True)
class CheckFailure:
    """A drift check that gave no scores. result: "failed" or "timeout", values of recald_drift_checks_total."""

    sensor: str
    result: str
    reason: str


class DriftMonitor:
    """Posts a `DriftCheck` or a `CheckFailure` of each sensor every `interval` that has new frames."""

    def __init__(
        self,
        config: DriftConfig,
        sensors: Mapping[str, Sensor],
        worker: WorkerClient,
        post: Callable[[DriftCheck | CheckFailure], None],
        wants_frames: Callable[[], bool] = lambda: False,
    ):
        """wants_frames: whether somebody may see the newest frames, and looks."""
        self._wants_frames = wants_frames
        self._config = config
        self._sensors = sensors
        self._worker = worker
        self._post = post
        self._checked_up_to = dict.fromkeys(sensors, 0)  # `reservoir.added` at the last check
        self._hinted: set[str] = set()  # sensors
        self._extra_s = 0.0  # of this round, for what is done now and then only
        self._period = config.interval  # from one round to the next
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="drift-monitor", daemon=True)

    def start(self) -> None:
        """Start the thread; the first check comes after one interval."""
        self._thread.start()

    def close(self) -> None:
        """End the worker at once, whatever it does, and the thread."""
        self._stopping.set()
        self._worker.close()
        if self._thread.is_alive():
            self._thread.join()
        self._worker.finish()  # reaps the process when no check was running

    def _run(self) -> None:
        pause = self._config.interval
        while not self._stopping.wait(pause):
            pause = self._check_all()

    def _check_all(self) -> float:
        """Check every sensor with new frames; return the pause until the next round."""
        try:
            self._worker.start()  # before the clock starts: starting a worker says nothing about the cost of checks
        except WorkerError as error:
            for sensor in self._sensors.values():
                self._fail(sensor, error)
            return CHECK_RETRY_S
        self._extra_s = 0.0
        started, worker_lived = time.monotonic(), True
        for sensor in self._sensors.values():
            worker_lived &= self._try_check(sensor)
        elapsed = max(0.0, time.monotonic() - started - self._extra_s)
        pause = max(self._config.interval, PAUSE_TO_CHECK_RATIO * elapsed)
        self._period = elapsed + pause
        return pause if worker_lived else max(pause, CHECK_RETRY_S)

    def _try_check(self, sensor: Sensor) -> bool:
        """Check one sensor, whatever happened to the others; return whether the worker has lived through it."""
        try:
            self._check(sensor)
        except WorkerError as error:
            self._fail(sensor, error)
            return False
        except Exception as error:  # a fault in here: without a thread, the last score would stand for ever
            log.exception("the drift check of %s broke", sensor.name)
            self._fail(sensor, error)
        return True

    def _check(self, sensor: Sensor) -> None:
        added = sensor.reservoir.added
        images = sensor.reservoir.latest(self._config.window)
        if len(images) < self._config.window or added == self._checked_up_to[sensor.name]:
            return
        fresh = min(added - self._checked_up_to[sensor.name], len(images))
        self._checked_up_to[sensor.name] = added
        job = check_request(sensor, self._config, fresh, time.monotonic()) | {"show": self._wants_frames()}
        active = job["active"]
        passes = len({FACTORY, active, job.get("challenger", active)})
        started = time.monotonic()
        scores = self._worker.call(job, images, passes * CHECK_PASS_TIMEOUT_S)
        self._extra_s += scores.get("extra_s", 0.0)
        # In the first round the period is not known yet, and a challenger makes checks longer.
        estimate = (1 + PAUSE_TO_CHECK_RATIO) * len(self._sensors) * (time.monotonic() - started)
        if "raw" in scores:
            self._hint_at_bits(sensor, images, scores["raw"])
            period = max(self._period, estimate)
            self._post(DriftCheck(sensor.name, active, scores, len(images), added, period))
        else:
            self._post(CheckFailure(sensor.name, "failed", str(scores.get("reason"))))

    def _hint_at_bits(self, sensor: Sensor, images: list[np.ndarray], raw: float) -> None:
        """Say once what looks like a drift and is none: a detector of 12 bits, say, whose words are taken for 16."""
        if raw <= self._config.threshold or sensor.name in self._hinted or sensor.pixel_values.bits < WORD_BITS:
            return
        bits = enough_bits(images, sensor.pixel_values.inverted)
        if bits is not None:
            self._hinted.add(sensor.name)
            text = "%s: drifted, and no value of its 16-bit frames is above %d: if its detector has %d bits, set "
            log.warning(text + "sensors.%s.bits: %d", sensor.name, 2**bits - 1, bits, sensor.name, bits)

    def _fail(self, sensor: Sensor, error: Exception) -> None:
        if not self._stopping.is_set():
            result = "timeout" if isinstance(error, WorkerTimeout) else "failed"
            self._post(CheckFailure(sensor.name, result, f"{error}" or type(error).__name__))
