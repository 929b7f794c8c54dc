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
# Of one core, for the checks of all sensors.
QUIET_SHARE = 0.04  # with what is not counted they take 5 % (`bench watch`)
BUSY_SHARE = 0.2  # while a drift shows or homogenizers are compared

log = logging.getLogger(__name__)


def check_request(sensor: Sensor, config: DriftConfig, fresh: int, now: float) -> dict[str, Any]:
    """Return what the worker is asked for in a check of the newest frames, as daemon.worker.observe_job reads it.

    fresh: how many of them no check has seen. now: monotonic, s.
    """
    job = {"job": "observe", "sensor": sensor.name, "active": sensor.path.version, "band": config.threshold}
    job |= {"fresh": fresh, "may_learn": sensor.may_be_healthy, "learn": config.learn, "now": now}
    job |= {"alarm": sensor.drift_detector.alarm, "relearn": sensor.relearn}
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
        self._spent_s = 0.0  # processor time of this round
        self._spent_before_s = 0.0  # of the last one that checked anything
        self._counted_s = 0.0  # the smaller of both
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
        pause, took = self._config.interval, 0.0
        while self._rest(pause, took):
            began = time.monotonic()
            pause = self._check_all()
            took = time.monotonic() - began

    def _rest(self, pause: float, took: float) -> bool:
        """Wait for the next round after one that took so long; return whether there is one.

        A drift that shows, or a comparison that begins, shortens the wait.
        """
        ended = time.monotonic()
        while (left := max(pause, self._counted_s / self._share - took) - (time.monotonic() - ended)) > 0:
            if self._stopping.wait(min(left, self._config.interval)):
                return False
        return not self._stopping.is_set()

    @property
    def _share(self) -> float:
        """Return the share of one core that checks may take."""
        return BUSY_SHARE if any(sensor.watched_closely for sensor in self._sensors.values()) else QUIET_SHARE

    def _check_all(self) -> float:
        """Check every sensor with new frames; return the pause until the next round, at least."""
        try:
            self._worker.start()  # before the clock starts: starting a worker says nothing about the cost of checks
        except WorkerError as error:
            for sensor in self._sensors.values():
                self._fail(sensor, error)
            return CHECK_RETRY_S
        self._spent_s = 0.0
        started, worker_lived = time.monotonic(), True
        for sensor in self._sensors.values():
            worker_lived &= self._try_check(sensor)
        self._count_time()
        self._period = max(time.monotonic() - started + self._config.interval, self._counted_s / QUIET_SHARE)
        return self._config.interval if worker_lived else max(self._config.interval, CHECK_RETRY_S)

    def _count_time(self) -> None:
        """Count the smaller time of two rounds, since the first check, learning and reading out take seconds once.

        A rest for them would leave the cameras unwatched.
        """
        self._counted_s = min(self._spent_before_s, self._spent_s)
        self._spent_before_s = self._spent_s or self._spent_before_s

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
        scores = self._worker.call(job, images, passes * CHECK_PASS_TIMEOUT_S)
        if "raw" not in scores:
            self._post(CheckFailure(sensor.name, "failed", str(scores.get("reason"))))
            return
        self._spent_s += scores["cpu_s"]
        self._hint_at_bits(sensor, images, scores["raw"])
        # In the first round the period is not known yet, and a challenger makes checks longer.
        period = max(self._period, len(self._sensors) * scores["cpu_s"] / QUIET_SHARE)
        self._post(DriftCheck(sensor.name, active, scores, len(images), added, period))

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
