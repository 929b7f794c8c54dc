"""Exports what no event announces: what is in force from the start on, and what changes with time alone."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from typing import NamedTuple

import torch

from daemon import __version__
from daemon.config import Config
from daemon.metrics import Metrics
from daemon.model.served_model import ServedModel
from daemon.monitoring.free_space import FreeSpace
from daemon.monitoring.gpu import GPU_SOURCES, GpuWatch, OpenSource
from daemon.monitoring.series import open_series
from daemon.monitoring.worker_processes import StartedProcess, WorkerProcesses
from daemon.recalibration.decisions import WAIT_REASONS
from daemon.recalibration.holds import HOLDERS, holds
from daemon.recalibration.restore import serving_since
from daemon.recalibration.sensor import Sensor
from daemon.serving.predicted_labels import PredictedLabels
from daemon.state.audit_writer import AuditWriter
from daemon.state.restart import MIN_VALID_TIME_S
from deploy.store.artefacts import ArtefactStore


class Since(NamedTuple):
    """What something is, and since when: seconds of the monotonic clock, which no correction of the date moves."""

    value: str
    at: float


class Exporter:
    """Belongs to the frame thread, which calls `update` once a second between two frames."""

    def __init__(
        self,
        metrics: Metrics,
        config: Config,
        model: ServedModel,
        sensors: Mapping[str, Sensor],
        store: ArtefactStore,
        audit_writer: AuditWriter,
        background: Executor,
        workers: Mapping[str, StartedProcess],
        clock: Callable[[], float] = time.monotonic,
        gpu_sources: Sequence[OpenSource] = GPU_SOURCES,
    ):
        """Export what is in force from this start on. store: knows since when a homogenizer serves."""
        self._metrics = metrics
        self._sensors = sensors
        self._audit_writer = audit_writer
        self._clock = clock
        self._free_space = FreeSpace(store.root, metrics, background)
        self._worker_processes = WorkerProcesses(metrics, workers)
        self._gpu = GpuWatch(metrics, gpu_sources, clock)
        now = clock()
        self._states = {name: Since(sensor.state_machine.state, now) for name, sensor in sensors.items()}
        self._homogenizers = {name: _serving(sensor, store, now) for name, sensor in sensors.items()}
        open_series(metrics, sensors)
        predicted = PredictedLabels(metrics, model.frozen.class_count, model.classes)
        for name in sensors:
            predicted.open(name)
        self._export_start(config, model)
        self.update()
        self._gpu.start()

    def close(self) -> None:
        """Stop asking the GPU."""
        self._gpu.close()

    def update(self) -> None:
        """Export what has changed within the last second."""
        metrics, now = self._metrics, self._clock()
        self._free_space.ask()
        self._worker_processes.update()
        self._gpu.export()
        metrics.clock_timestamp_seconds.set_to_current_time()
        metrics.audit_writable.set(not self._audit_writer.problem)
        for sensor in self._sensors.values():
            self._update_sensor(sensor, now)

    def _export_start(self, config: Config, model: ServedModel) -> None:
        metrics = self._metrics
        metrics.build_info.labels(__version__, torch.__version__, model.backend.name).set(1)
        metrics.config_info.labels(digest_of(config), config.recalibrate.mode).set(1)
        metrics.model_commissioned.set(model.frozen.card.commissioned is not None)
        metrics.drift_threshold.set(config.drift.threshold)
        metrics.drift_hold_seconds.set(config.drift.hold)

    def _update_sensor(self, sensor: Sensor, now: float) -> None:
        metrics, name = self._metrics, sensor.name
        metrics.reservoir_bytes.labels(name).set(sensor.reservoir.memory_bytes)
        metrics.camera_silence_seconds.labels(name).set(sensor.silent_s)
        metrics.drift_checks_overdue.labels(name).set(bool(sensor.unwatched))
        held = holds(sensor, self._audit_writer)
        for holder in HOLDERS:
            metrics.swaps_held.labels(name, holder).set(holder in held)
        for reason in WAIT_REASONS:
            metrics.calibration_waits.labels(name, reason).set(reason == sensor.state_machine.waits_for)
        for kind, left in sensor.state_machine.budget.left(now)._asdict().items():
            metrics.budget_left.labels(name, kind).set(left)
        self._states[name] = _still(self._states[name], sensor.state_machine.state, now)
        metrics.calibration_state_age_seconds.labels(name).set(now - self._states[name].at)
        self._homogenizers[name] = _still(self._homogenizers[name], sensor.path.version, now)
        metrics.homogenizer_age_seconds.labels(name).set(now - self._homogenizers[name].at)


def digest_of(config: Config) -> str:
    """Return the SHA-256 of every value in force, defaults included, whatever the file's order and comments."""
    return hashlib.sha256(json.dumps(config.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()


def _still(before: Since, value: str, now: float) -> Since:
    return before if before.value == value else Since(value, now)


def _serving(sensor: Sensor, store: ArtefactStore, now: float) -> Since:
    """Return what serves and since when; since this start where the pointer does not say it, or its date is wrong."""
    version, date = sensor.path.version, time.time()
    since = serving_since(sensor.name, version, store)
    if since is None or not MIN_VALID_TIME_S <= since <= date:
        return Since(version, now)
    return Since(version, now - (date - since))
