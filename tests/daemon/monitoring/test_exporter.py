"""What is exported once a second, and at the start, without any event."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry
from running import write_config

from calibrate.scoring.drift import DriftDetector
from daemon.config import RecalibrateConfig, load_config
from daemon.frames.reservoir import Reservoir
from daemon.metrics import Metrics
from daemon.monitoring.exporter import Exporter, digest_of
from daemon.monitoring.gpu_state import GpuState
from daemon.recalibration.decisions import WAIT_REASONS
from daemon.recalibration.holds import HOLDERS
from daemon.recalibration.sensor import Sensor
from daemon.recalibration.state_machine import StateMachine
from daemon.states import State
from deploy.path import InferencePath, PreparedHomogenizer
from deploy.store.artefacts import ArtefactStore

START = 1000.0  # of the monotonic clock, s


class Queue:
    """An executor whose calls wait until the test lets them run."""

    def __init__(self) -> None:
        self.calls: list[Any] = []

    def submit(self, do: Any, *given: Any) -> None:
        self.calls.append((do, given))

    def run(self) -> None:
        while self.calls:
            do, given = self.calls.pop(0)
            do(*given)


class Scene:
    def __init__(self, folder: Path, commissioned: bool = False) -> None:
        self.config = load_config(write_config(folder, folder / "model.pt2", sensors={}))
        self.now, self.background, self.registry = START, Queue(), CollectorRegistry()
        self.store = ArtefactStore(folder)
        self.audit: Any = SimpleNamespace(problem="")
        self.sensor = self._sensor("front")
        self._card = SimpleNamespace(commissioned=SimpleNamespace(frames=8) if commissioned else None)
        self.class_count: int | None = 3

    def _sensor(self, name: str) -> Sensor:
        runner: Any = SimpleNamespace(run=lambda batch: batch, close=lambda: None)
        machine = StateMachine(RecalibrateConfig(fits_a_day=3, swaps_a_day=2), START)
        path = InferencePath(runner)
        return Sensor(name, path, Reservoir(144, window=16), DriftDetector(1.6, 10.0), machine)

    def open(self, *gpu_sources: Any) -> Exporter:
        backend = SimpleNamespace(name="eager")
        frozen = SimpleNamespace(card=self._card, class_count=self.class_count)
        model: Any = SimpleNamespace(backend=backend, frozen=frozen, classes=["cat", "dog", "owl"])
        sensors, background, audit = {"front": self.sensor}, self.background, self.audit
        metrics, clock = Metrics(self.registry), lambda: self.now
        return Exporter(metrics, self.config, model, sensors, self.store, audit, background, {}, clock, gpu_sources)  # type: ignore[arg-type]

    def value(self, name: str, **labels: str) -> float:
        found = self.registry.get_sample_value(f"recald_{name}", labels)
        assert found is not None, name
        return found

    def front(self, name: str, **labels: str) -> float:
        return self.value(name, sensor="front", **labels)


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


def test_what_is_in_force_is_exported_at_the_start(scene, tmp_path):
    scene.open()
    assert scene.value("drift_threshold") == 2.0 and scene.value("drift_hold_seconds") == 0.5
    assert scene.value("config_info", digest=digest_of(scene.config), mode="autonomous") == 1
    assert scene.value("model_commissioned") == 0
    commissioned = Scene(tmp_path, commissioned=True)
    commissioned.open()
    assert commissioned.value("model_commissioned") == 1


def test_the_digest_of_the_configuration_is_of_its_values(scene, tmp_path):
    path = tmp_path / "recald.yaml"
    content = yaml.safe_load(path.read_text())
    content["sensors"] = dict(reversed(content["sensors"].items()))
    path.write_text("# a comment\n" + yaml.safe_dump(dict(reversed(content.items())), sort_keys=False))
    assert digest_of(load_config(path)) == digest_of(scene.config)
    content["drift"]["threshold"] = 2.1
    path.write_text(yaml.safe_dump(content))
    assert digest_of(load_config(path)) != digest_of(scene.config)


def test_counters_and_histograms_begin_at_0(scene):
    scene.open()
    assert scene.front("frames_dropped_total", reason="stale") == 0
    assert scene.front("fits_total", result="timeout") == 0 and scene.front("rollbacks_total", reason="error") == 0
    assert scene.front("swap_pause_seconds_count") == 0
    assert scene.value("frames_dropped_total", sensor="unknown", reason="sensor") == 0


def test_every_class_and_every_part_that_may_fail_begins_at_0(scene):
    scene.open()
    assert scene.front("predicted_frames_total", label="owl") == 0
    assert scene.value("handled_faults_total", part="learning") == 0


def test_a_network_that_is_no_classifier_has_no_predicted_labels(scene):
    scene.class_count = None
    scene.open()
    (family,) = (f for f in scene.registry.collect() if f.name == "recald_predicted_frames")
    assert family.samples == []


def flags(scene: Scene, name: str, label: str) -> dict[str, float]:
    """The series of a metric of the sensor, by the label beside it."""
    (family,) = (f for f in scene.registry.collect() if f.name == f"recald_{name}")
    return {sample.labels[label]: sample.value for sample in family.samples if sample.labels["sensor"] == "front"}


def test_the_gpu_is_exported_with_the_rest(scene):
    source = SimpleNamespace(read=lambda: {"0": GpuState(temperature=71.0)}, close=lambda: None)
    exporter = scene.open(lambda: source)
    deadline = time.monotonic() + 10
    while exporter._gpu._answer is None and time.monotonic() < deadline:
        time.sleep(0.005)
    exporter.update()
    assert scene.value("gpu_temperature_celsius", gpu="0") == 71
    exporter.close()
    assert not exporter._gpu._thread.is_alive()


def test_all_who_hold_a_sensor_are_exported(scene):
    exporter = scene.open()
    assert flags(scene, "swaps_held", "by") == dict.fromkeys(HOLDERS, 0)
    scene.sensor.operator_hold, scene.sensor.hold = None, True
    exporter.update()
    assert flags(scene, "swaps_held", "by") == {"audit": 0, "start": 1, "operator": 0, "camera": 1}
    scene.sensor.operator_hold, scene.sensor.hold, scene.audit.problem = "a drive is on", False, "the disk is full"
    exporter.update()
    assert flags(scene, "swaps_held", "by") == {"audit": 1, "start": 0, "operator": 1, "camera": 0}


def test_what_a_recalibration_waits_for_is_exported(scene):
    exporter = scene.open()
    assert flags(scene, "calibration_waits", "reason") == dict.fromkeys(WAIT_REASONS, 0)
    scene.sensor.state_machine.waits_for = "approval"
    exporter.update()
    assert flags(scene, "calibration_waits", "reason") == dict.fromkeys(WAIT_REASONS, 0) | {"approval": 1}


def test_the_age_of_a_state_grows_until_the_state_changes(scene):
    exporter = scene.open()
    scene.now += 90
    exporter.update()
    assert scene.front("calibration_state_age_seconds") == 90
    scene.sensor.state_machine.state = State.COLLECTING
    exporter.update()
    assert scene.front("calibration_state_age_seconds") == 0
    scene.now += 1
    exporter.update()
    assert scene.front("calibration_state_age_seconds") == 1


def test_the_age_of_a_homogenizer_counts_from_before_a_restart(scene):
    scene.store.point("front", "factory", "a" * 64, time.time() - 7200)
    exporter = scene.open()
    assert scene.front("homogenizer_age_seconds") == pytest.approx(7200, abs=5)
    scene.sensor.path.commit(PreparedHomogenizer("ab12", SimpleNamespace(run=None, close=lambda: None)))
    exporter.update()
    assert scene.front("homogenizer_age_seconds") == 0


@pytest.mark.parametrize("date", [3600.0, 4e9], ids=["1970", "the future"])
def test_a_wrong_date_of_the_pointer_gives_no_age(scene, date):
    scene.store.point("front", "factory", "a" * 64, date)
    scene.open()
    assert scene.front("homogenizer_age_seconds") == 0


def test_a_stopped_camera_and_overdue_checks_are_exported(scene):
    exporter = scene.open()
    assert scene.front("camera_silence_seconds") == scene.front("drift_checks_overdue") == 0
    scene.sensor.silent_s, scene.sensor.unwatched = 7.5, "no drift check for 40 s: they do not end"
    exporter.update()
    assert scene.front("camera_silence_seconds") == 7.5 and scene.front("drift_checks_overdue") == 1


def test_the_budget_falls_with_fits_and_comes_back(scene):
    exporter = scene.open()
    for _ in range(4):  # an operator's order may exceed the budget
        scene.sensor.state_machine.budget.count_fit(START)
    exporter.update()
    assert scene.front("budget_left", kind="fits") == 0 and scene.front("budget_left", kind="swaps") == 2
    scene.now += 86_401
    exporter.update()
    assert scene.front("budget_left", kind="fits") == 3


def test_an_audit_log_that_cannot_be_written_is_seen(scene):
    exporter = scene.open()
    assert scene.value("audit_writable") == 1
    scene.audit.problem = "the disk is full"
    exporter.update()
    assert scene.value("audit_writable") == 0


def test_the_clock_is_that_of_the_device(scene):
    began = time.time()
    scene.open()
    assert began <= scene.value("clock_timestamp_seconds") <= time.time()


def test_a_disk_that_hangs_is_asked_once(scene, tmp_path):
    exporter = scene.open()
    exporter.update()
    exporter.update()
    assert len(scene.background.calls) == 1 and str(scene.value("state_directory_free_bytes")) == "nan"
    scene.background.run()
    assert 0 < scene.value("state_directory_free_bytes") <= scene.value("state_directory_size_bytes")
    exporter.update()
    assert len(scene.background.calls) == 1


def test_the_space_of_a_folder_that_is_gone_is_unknown(scene, tmp_path):
    scene.store.root = tmp_path / "gone"
    scene.open()
    scene.background.run()
    assert str(scene.value("state_directory_free_bytes")) == "nan"
