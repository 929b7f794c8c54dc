"""The daemon in simulated time: its own state machine, drift checks, worker and swap, without sockets or waiting."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Any

import numpy as np
import torch
from prometheus_client import CollectorRegistry

from daemon.config import DriftConfig, RecalibrateConfig
from daemon.frames.quality_filter import QualityFilter
from daemon.frames.reservoir import Reservoir
from daemon.levels import stack_images
from daemon.metrics import Metrics
from daemon.model.preprocess import Preprocessor
from daemon.model.served_model import ServedModel
from daemon.recalibration.controller import Controller
from daemon.recalibration.drift_alarm import DriftAlarm
from daemon.recalibration.drift_monitor import DriftCheck, check_request
from daemon.recalibration.job import JobProgress, JobResult, JobRunner
from daemon.recalibration.sensor import Sensor
from daemon.recalibration.state_machine import StateMachine
from daemon.state.state_writer import StateWriter
from daemon.worker.context import WorkerContext
from daemon.worker.main import answer
from daemon.worker.memory import MemoryLimit
from daemon.worker.observe_job import observe
from deploy.backends.protocol import load_backend
from deploy.model.frozen import load_frozen
from deploy.path import InferencePath
from deploy.store.artefacts import ArtefactStore

NAME = "front"
WORK_S = 20.0  # simulated time of a recalibration, whatever time it takes here
BACKEND = "eager"


class ImmediateExecutor(Executor):
    """Runs at once what the daemon runs in the background."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        done: Future[Any] = Future()
        done.set_result(fn(*args, **kwargs))
        return done


class Records(list[tuple[float, str, dict[str, Any]]]):
    """Replaces the audit log: a list of (time, event, details)."""

    problem = ""
    pending = False
    state_moved = False

    def __init__(self, clock: Callable[[], float]):
        super().__init__()
        self._clock = clock

    def record(self, sensor: str, event: str, details: dict[str, Any]) -> None:
        self.append((self._clock(), event, details))


class InProcessWorker:
    """Replaces the worker process; with `seed` the fits are the same in each run."""

    def __init__(self, worker: WorkerContext, seed: int):
        self._worker = worker
        self._seed = seed

    def call(
        self,
        job: dict[str, Any],
        images: list[np.ndarray],
        timeout: float,
        on_message: Callable[[dict[str, Any]], None],
        memory: MemoryLimit | None = None,
    ) -> dict[str, Any]:
        messages: list[dict[str, Any]] = []
        answer(self._worker, job | {"seed": self._seed}, stack_images(images), messages.append, time.process_time())
        for message in messages[:-1]:
            on_message(message)
        return messages[-1]

    def finish(self) -> None:
        """Do nothing: there is no process to end."""

    close = finish


class SimulatedDaemon:
    """Serves one sensor; each `tick` serves frames and then does what is due."""

    def __init__(self, model: Path, state: Path, drift: DriftConfig, recalibrate: RecalibrateConfig, seed: int):
        self.now = 0.0
        self._due: list[tuple[float, JobResult | JobProgress]] = []
        self._drift = drift
        self._checked_up_to = 0
        frozen, store, backend = load_frozen(model), ArtefactStore(state), load_backend(BACKEND)
        runner = backend.load(backend.compile(frozen.module, torch.zeros(1, *frozen.card.input.shape)), threads=1)
        self._model = ServedModel(frozen, backend, runner, Preprocessor(frozen.card), backend.name)
        self._worker = WorkerContext(frozen, BACKEND, store)
        self.records = Records(lambda: self.now)
        self.sensor = self._new_sensor(recalibrate)
        in_process: Any = InProcessWorker(self._worker, seed)
        self._jobs = JobRunner(
            in_process,
            store,
            self._model,
            recalibrate.timeout,
            drift.threshold,
            self._post,
            {"frames": 0, "mib": 1},
        )
        record: Any = self.records
        at_once = ImmediateExecutor()
        self._controller = Controller(
            self._jobs,
            StateWriter(store, frozen.digest, at_once),
            recalibrate.frames,
            Metrics(CollectorRegistry()),
            at_once,
            record,
            lambda: self.now,
        )

    def tick(self, now: float, images: np.ndarray) -> np.ndarray:
        """Serve images (N, h, w, C) uint8 that arrived up to `now` (s); return the labels (N,)."""
        interval = (now - self.now) / len(images)
        batch = self._model.preprocessor.normalise(images)
        labels: np.ndarray = self.sensor.path.infer(batch).output.argmax(1)
        for image, label in zip(images, labels, strict=True):
            self.now += interval
            self.sensor.reservoir.add(image, self.now, int(label))
        self._check_drift()
        for due, event in [part for part in self._due if part[0] <= self.now]:
            self._due.remove((due, event))
            self._controller.handle(event, self.sensor, self.now)
        self._controller.step(self.sensor, self.now)
        if self.sensor.swap_begun:  # its record is written at once, and simulated time does not pass meanwhile
            self._controller.step(self.sensor, self.now)
        while not self._jobs.free:  # simulated time does not pass meanwhile
            time.sleep(0.01)
        return labels

    def close(self) -> None:
        self._jobs.close()
        self.sensor.path.close()
        self._model.runner.close()

    def _new_sensor(self, config: RecalibrateConfig) -> Sensor:
        window = self._drift.window
        return Sensor(
            NAME,
            InferencePath(self._model.runner),
            Reservoir(config.frames + window, window=window, quality_filter=QualityFilter()),
            DriftAlarm(self._drift),
            StateMachine(config, self.now),
        )

    def _check_drift(self) -> None:
        """Do what the daemon's drift monitor does."""
        sensor, window = self.sensor, self._drift.window
        images = sensor.reservoir.latest(window)
        if len(images) < window:
            return
        added = sensor.reservoir.added
        job = check_request(sensor, self._drift, min(added - self._checked_up_to, window), self.now)
        self._checked_up_to = added
        scores = observe(self._worker, job, stack_images(images))
        check = DriftCheck(NAME, sensor.path.version, scores, len(images), sensor.reservoir.added)
        self._controller.handle(check, sensor, self.now)

    def _post(self, event: JobResult | JobProgress) -> None:
        self._due.append((self.now + (WORK_S if isinstance(event, JobResult) else 0.0), event))
