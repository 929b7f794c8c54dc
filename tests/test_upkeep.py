"""What is done between two frames, with fakes for all that takes time."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from calibrate.drift import DriftDetector
from daemon.config import RecalibrateConfig
from daemon.metrics import Metrics
from daemon.recalibration import Finished
from daemon.recalibrator import Recalibrator, State
from daemon.reservoir import Reservoir
from daemon.sensor import Candidate, Sensor
from daemon.upkeep import Upkeep
from daemon.watch import Observed
from deploy.path import InferencePath, Prepared
from deploy.store import FACTORY

WINDOW = 64


class Runner:
    closed = False

    def run(self, batch: np.ndarray) -> np.ndarray:
        return batch

    def close(self) -> None:
        self.closed = True


class Recorded:
    """Stands in for the recorder."""

    def __init__(self, records: list[tuple[str, dict[str, Any]]]) -> None:
        self.records, self.failing = records, False

    def __call__(self, sensor: str, event: str, details: dict[str, Any]) -> None:
        self.records.append((event, details))


class Scene:
    """One sensor, a factory homogenizer that serves, and whatever is written down."""

    def __init__(self, **settings: Any) -> None:
        self.now, self.records, self.written = 0.0, [], []
        config = RecalibrateConfig(frames=64, collect=0, shadow=0, **settings)
        self.sensor = Sensor(
            "front",
            InferencePath(Runner()),
            Reservoir(128, window=WINDOW),
            DriftDetector(1.6, 10.0),
            Recalibrator(config, 0.0),
        )
        self.record: Any = Recorded(self.records)
        persistence: Any = SimpleNamespace(
            serves=lambda _, version: self.written.append(("serves", version)),
            withdrawn=lambda _, versions: self.written.append(("withdrawn", sorted(versions))),
        )
        recalibration: Any = SimpleNamespace(free=True, start=lambda *given: None)
        background: Any = SimpleNamespace(submit=lambda do, *given: do(*given))
        self.registry = CollectorRegistry()
        metrics = Metrics(self.registry)
        self.upkeep = Upkeep(recalibration, persistence, 64, metrics, background, self.record, lambda: self.now)

    def frames(self, count: int) -> None:
        for number in range(count):
            self.sensor.reservoir.add(np.full((2, 2, 3), number % 256, np.uint8), self.now)

    def fit(self, version: str, incumbent: str = FACTORY) -> Runner:
        """An operator's fit that has led to this candidate."""
        self.begin_fit()
        runner = Runner()
        candidate = Candidate(Prepared(version, runner), incumbent)
        self.upkeep.take_in(Finished("front", "accepted", "better", candidate), self.sensor, self.now)
        return runner

    def begin_fit(self) -> None:
        self.sensor.recalibrator.request()
        self.frames(64)
        self.step(2)
        assert self.sensor.recalibrator.state is State.FITTING

    def look(self, objections: str = "") -> None:
        rival = self.sensor.rival
        assert rival is not None
        compared = {"role": rival.role, "version": rival.version, "score": 1.0, "objections": objections}
        scores = {"raw": 9.0, "homogenized": 9.0, "layers": {}, "proxy": {}, "rival": compared}
        scores |= {"narrow": False, "clean_without": False}
        reservoir = self.sensor.reservoir
        event = Observed("front", self.sensor.path.version, scores, WINDOW, reservoir.added)
        self.upkeep.take_in(event, self.sensor, self.now)

    def look_at_new_frames(self, objections: str = "") -> None:
        self.frames(WINDOW)
        self.look(objections)

    def step(self, times: int = 1) -> None:
        for _ in range(times):
            self.now += 0.05
            self.upkeep.step(self.sensor, self.now)

    @property
    def events(self) -> list[str]:
        return [event for event, _ in self.records]


@pytest.fixture
def scene() -> Scene:
    return Scene()


def test_a_candidate_serves_after_three_looks_at_new_frames(scene):
    scene.fit("a")
    for _ in range(2):
        scene.look_at_new_frames()
    for _ in range(5):
        scene.look()  # at the same frames again
    scene.step()
    assert scene.sensor.path.version == FACTORY
    scene.look_at_new_frames()
    scene.step()
    assert scene.sensor.path.version == "a"
    assert scene.written == [("serves", "a")]
    assert "swap" in scene.events


def test_frames_from_before_the_candidate_are_no_new_frames(scene):
    scene.frames(200)
    scene.fit("a")
    for _ in range(3):
        scene.look()
    scene.step()
    assert scene.sensor.path.version == FACTORY


def test_a_candidate_that_is_no_better_is_closed_and_not_tried_again(scene):
    runner = scene.fit("a")
    for _ in range(2):
        scene.look_at_new_frames("score 9 is no better")
    scene.step()
    assert runner.closed and scene.sensor.waiting is None
    assert scene.written == [("withdrawn", ["a"])]
    assert scene.sensor.last_result.startswith("rejected: no better in 2 of 2")


def test_a_candidate_judged_against_one_that_is_gone_is_dropped(scene):
    runner = scene.fit("b", incumbent="a")
    assert runner.closed and scene.sensor.waiting is None
    assert scene.sensor.path.version == FACTORY
    assert ("candidate dropped", {"candidate": "b", "result": "outdated", "reason": "another serves by now"}) in (
        scene.records
    )
    assert scene.written == [], "it was not found wanting"


def test_a_rollback_drops_the_candidate_and_remembers_what_was_taken_back(scene):
    first = scene.fit("a")
    for _ in range(3):
        scene.look_at_new_frames()
    scene.step()
    for _ in range(3):
        scene.look_at_new_frames("the one before is no better")
    scene.now += 60
    scene.step()
    assert scene.sensor.recalibrator.state is State.ACTIVE
    second = scene.fit("b", incumbent="a")
    scene.upkeep.roll_back(scene.sensor, "operator")
    assert first.closed and second.closed
    assert scene.sensor.path.version == FACTORY and scene.sensor.waiting is None
    assert scene.sensor.withdrawn == {"a"}
    assert scene.sensor.recalibrator.state is State.ROLLED_BACK


def test_nothing_is_swapped_while_the_audit_log_cannot_be_written(scene):
    scene.fit("a")
    for _ in range(3):
        scene.look_at_new_frames()
    scene.record.failing = True
    scene.step()
    assert scene.sensor.path.version == FACTORY and "audit log" in scene.sensor.recalibrator.reason
    scene.record.failing = False
    scene.step()
    assert scene.sensor.path.version == "a"


def test_clean_frames_that_are_spoilt_are_served_without_a_homogenizer(scene):
    runner = scene.fit("a")
    for _ in range(3):
        scene.look_at_new_frames()
    scene.step()
    assert scene.sensor.path.version == "a"
    scene.sensor.detector.alarm, scene.sensor.clean_without = True, True
    scene.step()
    assert scene.sensor.path.version == FACTORY and scene.sensor.path.fallback == "a" and not runner.closed
    assert scene.written[-1] == ("serves", FACTORY) and scene.events[-2:] != ["rollback"]
    assert scene.sensor.withdrawn == set(), "it is right again when the drift comes back"
    assert not scene.sensor.clean_without, "said of the frames as they were served"


def test_nothing_of_the_past_being_right_does_not_end_the_collecting(scene):
    scene.sensor.recalibrator.request()
    scene.step()
    scene.upkeep.take_in(Finished("front", "unknown", "nothing that served before is right"), scene.sensor, scene.now)
    assert scene.sensor.recalibrator.state is State.COLLECTING
    assert "fit" not in scene.events


def test_a_candidate_that_nobody_waits_for_any_more_is_closed(scene):
    runner = Runner()
    late = Finished("front", "recalled", "an earlier one is better", Candidate(Prepared("a", runner), FACTORY))
    scene.upkeep.take_in(late, scene.sensor, scene.now)
    assert runner.closed and scene.sensor.waiting is None
    assert scene.sensor.recalibrator.state is State.FACTORY


def test_every_state_that_was_passed_is_told_once(scene):
    scene.fit("a")
    scene.step()
    states = [details["state"] for event, details in scene.records if event == "state"]
    assert states == ["collecting", "fitting", "shadow"]


def test_the_record_of_a_fit_names_its_dossier(scene):
    for dossier in ("d" * 64, None):
        scene.sensor.recalibrator.request()
        scene.step()
        scene.upkeep.take_in(Finished("front", "rejected", "worse", dossier=dossier), scene.sensor, 0.0)
        assert scene.records[-1] == (
            "fit",
            {"result": "rejected", "reason": "worse", "trigger": "operator", "dossier": dossier},
        )


def test_a_refused_version_is_counted_told_and_not_tried_again(scene):
    scene.begin_fit()
    scene.upkeep.take_in(Finished("front", "refused", "gain 9", unfit="outside"), scene.sensor, scene.now)
    assert (scene.sensor.recalibrator.state, scene.sensor.path.version) == (State.FACTORY, FACTORY)
    assert scene.registry.get_sample_value("recald_fits_total", {"sensor": "front", "result": "refused"}) == 1
    told = [details for event, details in scene.records if event == "fit"][-1]
    assert told == {
        "result": "refused",
        "reason": "gain 9",
        "trigger": "operator",
        "dossier": None,
        "withdrawn": "outside",
    }
    assert scene.written[-1] == ("withdrawn", ["outside"])


def test_a_stored_version_that_cannot_serve_is_not_tried_again(scene):
    scene.upkeep.take_in(Finished("front", "failed", "does not load", unfit="a"), scene.sensor, 0.0)
    assert scene.written == [("withdrawn", ["a"])]
