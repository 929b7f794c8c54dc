"""The drift watch: a thread that has the newest frames of every sensor scored by a worker process."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from daemon.config import DriftConfig
from daemon.recalibration.sensor import Sensor
from daemon.worker.client import WorkerClient, WorkerError

CHECK_TIMEOUT = 60.0  # s; a check is one forward pass of a window
RESTART_PAUSE = 10.0  # s between a broken check and the next, so that a worker that dies at once costs little
REST = 4.0  # times as long as a round took is waited after it: large frames may cost a fifth of a core

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class DriftCheck:
    """Scores of one sensor's newest frames, and the homogenizer they were scored with."""

    sensor: str
    homogenizer: str
    scores: dict[str, Any]
    frames: int = 0  # how many were scored
    added: int = 0  # the newest of them among all that were kept


class DriftMonitor:
    """Posts an `DriftCheck` for each sensor every `interval`, as long as it has new frames."""

    def __init__(
        self,
        config: DriftConfig,
        sensors: Mapping[str, Sensor],
        worker: WorkerClient,
        post: Callable[[DriftCheck], None],
    ):
        self._config = config
        self._sensors = sensors
        self._worker = worker
        self._post = post
        self._seen = dict.fromkeys(sensors, 0)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="drift-watch", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._stopping.set()
        self._worker.close()
        if self._thread.is_alive():
            self._thread.join()
        self._worker.finish()  # reaps it where no check was under way

    def _run(self) -> None:
        pause = self._config.interval
        while not self._stopping.wait(pause):
            try:
                self._worker.start()  # what that takes says nothing about a round's cost
                began = time.monotonic()
                for sensor in self._sensors.values():
                    self._check(sensor)
                pause = max(self._config.interval, REST * (time.monotonic() - began))
            except WorkerError as error:
                if not self._stopping.is_set():
                    log.warning("drift check: %s", error)
                self._stopping.wait(RESTART_PAUSE)

    def _check(self, sensor: Sensor) -> None:
        added = sensor.reservoir.added
        images = sensor.reservoir.latest(self._config.window)
        if len(images) < self._config.window or added == self._seen[sensor.name]:
            return
        self._seen[sensor.name] = added
        active = sensor.path.version
        job = {"job": "observe", "active": active, "band": self._config.threshold}
        if (challenger := sensor.challenger) is not None:
            job |= {"challenger": challenger.version, "role": challenger.role}
        scores = self._worker.call(job, images, CHECK_TIMEOUT)
        if "raw" in scores:
            self._post(DriftCheck(sensor.name, active, scores, len(images), added))
        else:
            log.warning("drift check of %s failed: %s", sensor.name, scores.get("reason"))
