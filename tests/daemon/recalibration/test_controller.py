"""What the controller does between two frames, with fakes for all that takes time."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from calibrate.scoring.interval import wilson
from daemon.config import DriftConfig, RecalibrateConfig
from daemon.frames.latency_monitor import MIN_LATENCY_FRAMES
from daemon.frames.reservoir import Reservoir
from daemon.metrics import Metrics
from daemon.recalibration.controller import Controller
from daemon.recalibration.drift_alarm import DriftAlarm
from daemon.recalibration.drift_monitor import CheckFailure, DriftCheck
from daemon.recalibration.job import JobProgress, JobResult
from daemon.recalibration.sensor import Candidate, Sensor
from daemon.recalibration.state_machine import OrderRefused, StateMachine
from daemon.settings.values import DAY
from daemon.state.audit_writer import AuditWriter
from daemon.state.restart import RestartState
from daemon.states import Result, State
from deploy.audit.chain import AuditRecord
from deploy.audit.log import AuditError, AuditLog
from deploy.path import InferencePath, PreparedHomogenizer
from deploy.store.artefacts import FACTORY

WINDOW = 64
# What a drift check says beside its scores where nothing is the matter.
NOTHING_ELSE: dict[str, Any] = {"label_shift": False, "raw_clean": False, "harmful": False, "accuracy": {}}
NOTHING_ELSE |= {"relearned": False, "camera": {}, "learned": 0.0, "read_outs": {"found": [], "words": []}}


class Runner:
    closed = False

    def run(self, batch: np.ndarray) -> np.ndarray:
        return batch

    def close(self) -> None:
        self.closed = True


class Recorded:
    """Stands in for the audit writer."""

    def __init__(self, records: list[tuple[str, dict[str, Any]]]) -> None:
        self.records, self.problem, self.pending, self.state_moved = records, "", False, False

    def record(self, sensor: str, event: str, details: dict[str, Any]) -> None:
        self.records.append((event, details))


class Scene:
    """One sensor, a factory homogenizer that serves, and whatever is written down."""

    def __init__(self, audit_writer: Any = None, **settings: Any) -> None:
        self.now, self.records, self.written = 0.0, [], []
        config = RecalibrateConfig(frames=128, collect=0, shadow=0, **settings)
        self.sensor = Sensor(
            "front",
            InferencePath(Runner()),
            Reservoir(128 + WINDOW, window=WINDOW),
            DriftAlarm(DriftConfig()),
            StateMachine(config, 0.0),
        )
        self.record: Any = audit_writer or Recorded(self.records)
        state_writer: Any = SimpleNamespace(
            save_active=lambda _, version: self.written.append(("serves", version)),
            save_withdrawn=lambda _, versions: self.written.append(("withdrawn", sorted(versions))),
        )
        self.aborted: list[str] = []
        self.recalibration: Any = SimpleNamespace(free=True, start=lambda *given: None, abort=self.aborted.append)
        background: Any = SimpleNamespace(submit=lambda do, *given: do(*given))
        self.registry = CollectorRegistry()
        metrics = Metrics(self.registry)
        self.controller = Controller(
            self.recalibration, state_writer, 128, metrics, background, self.record, lambda: self.now
        )

    def metric(self, name: str, labels: dict[str, str]) -> Any:
        return self.registry.get_sample_value(f"recald_{name}", {"sensor": "front"} | labels)

    def frames(self, count: int) -> None:
        for number in range(count):
            self.sensor.reservoir.add(np.full((2, 2, 3), number % 256, np.uint8), self.now)

    def fit(self, version: str, champion: str = FACTORY, cost: float = 0.0) -> Runner:
        """An operator's fit that has led to this candidate."""
        self.begin_fit()
        runner = Runner()
        candidate = Candidate(PreparedHomogenizer(version, runner, cost), champion)
        self.controller.handle(JobResult("front", Result.ACCEPTED, "better", candidate), self.sensor, self.now)
        return runner

    def begin_fit(self) -> None:
        self.sensor.state_machine.request()
        self.frames(128)
        self.step(2)
        assert self.sensor.state_machine.state is State.FITTING

    def compare(self, objections: str = "", raw: float = 9.0, raw_clean: bool = False, abstains: bool = False) -> None:
        challenger = self.sensor.challenger
        assert challenger is not None
        compared = {"role": challenger.role, "version": challenger.version}
        compared |= {"objections": objections, "abstains": abstains}
        scores = {"raw": raw, "homogenized": 9.0, "layers": {}, "proxy": {}, "challenger": compared}
        scores = NOTHING_ELSE | scores | {"raw_clean": raw_clean}
        reservoir = self.sensor.reservoir
        event = DriftCheck("front", self.sensor.path.version, scores, WINDOW, reservoir.added)
        self.controller.handle(event, self.sensor, self.now)

    def compare_on_new_frames(self, objections: str = "", **seen: Any) -> None:
        self.frames(WINDOW)
        self.compare(objections, **seen)

    def serve(self, version: str, champion: str = FACTORY) -> Runner:
        """Let this candidate serve, on probation."""
        runner = self.fit(version, champion)
        for _ in range(3):
            self.compare_on_new_frames()
        self.step()
        assert self.sensor.path.version == version
        return runner

    def clean_check(self) -> None:
        scores = {"raw": 1.0, "homogenized": 1.0, "layers": {}, "proxy": {}}
        scores = NOTHING_ELSE | scores | {"raw_clean": True}
        self.controller.handle(DriftCheck("front", self.sensor.path.version, scores), self.sensor, self.now)

    def step(self, times: int = 1) -> None:
        for _ in range(times):
            self.now += 0.05
            self.controller.step(self.sensor, self.now)
            if self.sensor.swap_begun:  # its record is written at once
                self.controller.step(self.sensor, self.now)

    @property
    def events(self) -> list[str]:
        return [event for event, _ in self.records]


@pytest.fixture
def scene() -> Scene:
    return Scene()


def test_a_candidate_serves_after_three_comparisons_on_new_frames(scene):
    scene.fit("a")
    for _ in range(2):
        scene.compare_on_new_frames()
    for _ in range(5):
        scene.compare()  # at the same frames again
    scene.step()
    assert scene.sensor.path.version == FACTORY
    scene.compare_on_new_frames()
    scene.step()
    assert scene.sensor.path.version == "a"
    assert scene.written == [("serves", "a")]
    assert "swap" in scene.events


def test_a_look_that_abstains_counts_neither_way_and_the_next_may_follow_at_once(scene):
    scene.fit("a")
    for _ in range(10):
        scene.compare_on_new_frames("score 3 is no better", abstains=True)
        scene.step()
    assert scene.sensor.candidate is not None and scene.sensor.path.version == FACTORY
    for _ in range(2):
        scene.compare_on_new_frames()
    scene.compare_on_new_frames("score 3 is no better", abstains=True)
    scene.compare()  # at the same frames again, which have not been counted yet
    scene.step()
    assert scene.sensor.path.version == "a"


def test_a_look_that_abstains_does_not_excuse_the_others(scene):
    scene.fit("a")
    for _ in range(2):
        scene.compare_on_new_frames("score 3 is no better", abstains=True)
        scene.compare_on_new_frames("score 9 is no better")
    scene.step()
    assert scene.sensor.candidate is None
    assert scene.sensor.last_result.startswith("rejected: not better in 2 of 2")


def test_frames_from_before_the_candidate_are_no_new_frames(scene):
    scene.frames(200)
    scene.fit("a")
    for _ in range(3):
        scene.compare()
    scene.step()
    assert scene.sensor.path.version == FACTORY


def test_a_candidate_that_is_no_better_is_closed_and_not_tried_again(scene):
    runner = scene.fit("a")
    for _ in range(2):
        scene.compare_on_new_frames("score 9 is no better")
    scene.step()
    assert runner.closed and scene.sensor.candidate is None
    assert scene.written == [("withdrawn", ["a"])]
    assert scene.sensor.last_result.startswith("rejected: not better in 2 of 2")


def test_a_recalled_homogenizer_that_is_dropped_may_be_tried_again(scene):
    scene.begin_fit()
    runner = Runner()
    recalled = JobResult(
        "front", Result.RECALLED, "better", Candidate(PreparedHomogenizer("a", runner), FACTORY, recalled=True)
    )
    scene.controller.handle(recalled, scene.sensor, scene.now)
    for _ in range(2):
        scene.compare_on_new_frames("score 9 is no better")
    scene.step()
    assert runner.closed and scene.sensor.candidate is None
    assert scene.sensor.withdrawn == set() and scene.written == []


def test_a_candidate_judged_against_a_homogenizer_that_no_longer_serves_is_dropped(scene):
    scene.serve("c")
    for _ in range(3):
        scene.compare_on_new_frames("the one before is no better")
    scene.now += 60
    scene.step()
    runner = scene.fit("b", champion="a")
    assert runner.closed and scene.sensor.candidate is None
    assert scene.sensor.path.version == "c"
    assert (
        "candidate dropped",
        {"candidate": "b", "result": "outdated", "reason": "another homogenizer serves by now"},
    ) in (scene.records)
    assert scene.written == [("serves", "c")], "it was not found wanting"


def test_a_rollback_drops_the_candidate_and_remembers_what_was_taken_back(scene):
    first = scene.fit("a")
    for _ in range(3):
        scene.compare_on_new_frames()
    scene.step()
    for _ in range(3):
        scene.compare_on_new_frames("the one before is no better")
    scene.now += 60
    scene.step()
    assert scene.sensor.state_machine.state is State.ACTIVE
    second = scene.fit("b", champion="a")
    scene.controller.roll_back(scene.sensor, "operator")
    assert first.closed and second.closed
    assert scene.sensor.path.version == FACTORY and scene.sensor.candidate is None
    assert scene.sensor.withdrawn == set() and scene.sensor.set_aside == {"a", "b"}
    assert scene.sensor.state_machine.state is State.ROLLED_BACK


def test_nothing_is_swapped_while_the_audit_log_cannot_be_written(scene):
    scene.fit("a")
    for _ in range(3):
        scene.compare_on_new_frames()
    scene.record.problem = "full"
    scene.step()
    assert scene.sensor.path.version == FACTORY and "audit log" in scene.sensor.state_machine.reason
    scene.record.problem = ""
    scene.step()
    assert scene.sensor.path.version == "a"


def test_a_homogenizer_serves_once_the_log_holds_that_its_swap_begins(scene):
    scene.fit("a")
    for _ in range(3):
        scene.compare_on_new_frames()
    scene.record.pending = True
    scene.step(3)
    assert scene.sensor.path.version == FACTORY and "swap begun" not in scene.events, "earlier records come first"
    assert scene.sensor.state_machine.reason == "the candidate waits: the audit log is being written"
    scene.record.pending = False
    scene.controller.step(scene.sensor, scene.now)
    assert scene.records[-1] == ("swap begun", {"from": FACTORY, "to": "a"}) and scene.sensor.path.version == FACTORY
    scene.record.pending = True
    scene.step(3)
    assert scene.sensor.path.version == FACTORY and scene.events.count("swap begun") == 1
    scene.record.pending = False
    scene.step()
    assert scene.sensor.path.version == "a" and scene.events[-3:] == ["swap begun", "swap", "state"]


def test_no_record_no_swap_on_a_disk_that_takes_no_more_just_before_it(tmp_path, monkeypatch):
    """The log lies in its place as before, and every check of that succeeds; only an append finds the disk full."""
    append, full = AuditLog.append, False

    def append_unless_full(audit: AuditLog, *given: Any) -> AuditRecord:
        if full:
            raise AuditError("the disk is full")
        return append(audit, *given)

    monkeypatch.setattr(AuditLog, "append", append_unless_full)
    path = tmp_path / "audit.sqlite"
    with ThreadPoolExecutor(1) as background:
        writer = AuditWriter(partial(AuditLog, path), background, Metrics(CollectorRegistry()))
        scene = Scene(writer, mode="supervised")
        scene.fit("a")
        for _ in range(3):
            scene.compare_on_new_frames()
        background.submit(lambda: None).result()
        scene.step()
        assert scene.sensor.state_machine.state is State.AWAITING_APPROVAL
        background.submit(lambda: None).result()
        full = True
        scene.sensor.state_machine.approve()
        writer.record("front", "order", {"order": "approve"})
        for _ in range(4):
            scene.step()
            background.submit(lambda: None).result()
            assert not writer.pending or scene.sensor.path.version == FACTORY
        assert scene.sensor.path.version == FACTORY and "the disk is full" in scene.sensor.state_machine.reason
        full = False
        for _ in range(4):
            writer.check(math.inf)
            background.submit(lambda: None).result()
            scene.step()
        assert scene.sensor.path.version == "a"
    writer.close()
    with closing(AuditLog(path, read_only=True)) as audit:
        events = [record.event for record in audit.records(exclude=("state",))]
        assert events[-3:] == ["order", "swap begun", "swap"]


def test_the_fitted_homogenizer_before_returns_from_factory_once_that_is_recorded(scene):
    scene.serve("a")
    scene.sensor.drift_detector.alarm, scene.sensor.raw_clean = True, True
    scene.step()
    assert scene.sensor.path.version == FACTORY and "swap begun" not in scene.events[-2:], "never delayed"
    for _ in range(2):
        scene.compare_on_new_frames()
    scene.controller.step(scene.sensor, scene.now)
    assert scene.sensor.path.version == FACTORY
    scene.step()
    assert scene.sensor.path.version == "a" and scene.events[-3:-1] == ["swap begun", "rollback"]


@pytest.mark.parametrize("cause", ["operator", "audit log", "camera"])
def test_a_worse_homogenizer_goes_back_whatever_holds(scene, cause):
    scene.fit("a")
    for _ in range(3):
        scene.compare_on_new_frames()
    scene.step()
    scene.sensor.operator_hold = "anna holds" if cause == "operator" else ""
    scene.record.problem = "the disk is full" if cause == "audit log" else ""
    scene.sensor.hold = cause == "camera"
    for _ in range(2):
        scene.compare_on_new_frames()
    scene.step()
    assert scene.sensor.path.version == FACTORY and "rollback" in scene.events
    assert ("held: no new homogenizer serves" in scene.sensor.status()["reason"]) == (cause == "operator")


def test_the_factory_homogenizer_serves_when_the_active_one_harms_clean_frames(scene):
    runner = scene.fit("a")
    for _ in range(3):
        scene.compare_on_new_frames()
    scene.step()
    assert scene.sensor.path.version == "a"
    scene.sensor.drift_detector.alarm, scene.sensor.raw_clean = True, True
    scene.step()
    assert scene.sensor.path.version == FACTORY and scene.sensor.path.fallback == "a" and not runner.closed
    assert scene.written[-1] == ("serves", FACTORY) and scene.events[-2:] != ["rollback"]
    assert scene.sensor.withdrawn == set(), "it is right again when the drift comes back"
    assert not scene.sensor.raw_clean, "said of the frames as they were served"


def test_a_recall_that_finds_nothing_does_not_end_collecting(scene):
    scene.sensor.state_machine.request()
    scene.step()
    scene.controller.handle(
        JobResult("front", Result.UNKNOWN, "nothing that served before is right", recall=True), scene.sensor, scene.now
    )
    assert scene.sensor.state_machine.state is State.COLLECTING
    assert "fit" not in scene.events


def test_a_candidate_that_nobody_waits_for_any_more_is_closed(scene):
    runner = Runner()
    late = JobResult(
        "front", Result.RECALLED, "an earlier one is better", Candidate(PreparedHomogenizer("a", runner), FACTORY)
    )
    scene.controller.handle(late, scene.sensor, scene.now)
    assert runner.closed and scene.sensor.candidate is None
    assert scene.sensor.state_machine.state is State.FACTORY
    assert scene.records[-1][0] == "fit" and scene.records[-1][1]["result"] == "outdated"
    assert scene.metric("fits_total", {"result": "outdated"}) == 1


def test_every_state_is_recorded_once(scene):
    scene.fit("a")
    scene.step()
    states = [details["state"] for event, details in scene.records if event == "state"]
    assert states == ["collecting", "fitting", "shadow"]


def test_the_record_of_a_fit_names_its_dossier(scene):
    for dossier in ("d" * 64, None):
        scene.sensor.state_machine.request()
        scene.step()
        scene.controller.handle(JobResult("front", Result.REJECTED, "worse", dossier=dossier), scene.sensor, 0.0)
        assert scene.records[-1] == (
            "fit",
            {"result": "rejected", "reason": "worse", "trigger": "operator", "dossier": dossier},
        )


def test_a_refused_version_is_counted_recorded_and_not_tried_again(scene):
    scene.begin_fit()
    scene.controller.handle(JobResult("front", Result.REFUSED, "gain 9", unusable="outside"), scene.sensor, scene.now)
    assert (scene.sensor.state_machine.state, scene.sensor.path.version) == (State.FACTORY, FACTORY)
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


def test_a_hold_from_before_a_restart_holds_and_is_written_once_more(scene):
    scene.sensor.operator_hold = None
    scene.fit("a")
    for _ in range(3):
        scene.compare_on_new_frames()
    scene.step()
    assert scene.sensor.path.version == FACTORY and "not yet read" in scene.sensor.state_machine.reason
    scene.controller.handle(RestartState("front", "anna holds", [], []), scene.sensor, scene.now)
    scene.step()
    assert scene.sensor.path.version == FACTORY and scene.sensor.status()["hold"]
    assert scene.sensor.state_machine.reason == "the candidate waits: anna holds; `recald hold --release` ends it"
    assert ("order", {"order": "hold", "by": "recald", "reason": "anna holds"}) in scene.records
    scene.sensor.operator_hold = ""
    scene.step()
    assert scene.sensor.path.version == "a"


def test_an_order_given_before_the_log_was_read_is_the_newer_one(scene):
    scene.controller.handle(RestartState("front", "anna holds", [], []), scene.sensor, scene.now)
    assert scene.sensor.operator_hold == "" and scene.records == []


def test_the_budget_spent_before_a_restart_counts():
    scene = Scene(swaps_a_day=2)
    scene.now = 100.0
    scene.controller.handle(RestartState("front", "", [], [DAY - 1, 60.0]), scene.sensor, scene.now)
    scene.sensor.drift_detector.alarm = True
    scene.step()
    assert scene.sensor.state_machine.state is State.FACTORY and "budget" in scene.sensor.state_machine.reason
    scene.now += 1
    scene.step()
    assert scene.sensor.state_machine.state is State.COLLECTING


def test_a_fit_is_recorded_when_it_begins(scene):
    """Also one that ends the daemon has spent its share of the budget."""
    scene.fit("a")
    assert scene.events.index("fit begun") < scene.events.index("fit")
    assert ("fit begun", {"trigger": "operator"}) in scene.records


def serve(scene: Scene, milliseconds: float) -> None:
    for _ in range(MIN_LATENCY_FRAMES):
        scene.sensor.latency_monitor.observe(milliseconds / 1000)


@pytest.mark.parametrize(("cost", "rolled_back"), [(0.0, True), (0.004, False)])
def test_a_homogenizer_that_serves_slower_than_when_proven_is_rolled_back(cost, rolled_back):
    scene = Scene()
    serve(scene, 3)
    scene.fit("a", cost=cost)
    for _ in range(3):
        scene.compare_on_new_frames()
    scene.step()
    assert scene.sensor.state_machine.state is State.PROBATION
    serve(scene, 8)
    scene.step()
    assert (scene.sensor.path.version == FACTORY) is rolled_back
    if rolled_back:
        why = "a frame takes 8.0 ms, 3.0 were expected"
        assert ("rollback", {"from": "a", "to": FACTORY, "reason": "latency", "why": why}) in scene.records
        assert scene.sensor.state_machine.reason == f"rolled back: latency, {why}"
        assert scene.sensor.withdrawn == {"a"}


def test_the_factory_homogenizer_is_never_too_slow(scene):
    serve(scene, 3)
    scene.fit("a")
    for _ in range(3):
        scene.compare_on_new_frames()
    scene.step()
    serve(scene, 3)
    scene.sensor.drift_detector.alarm, scene.sensor.raw_clean = True, True
    scene.step()
    assert scene.sensor.path.version == FACTORY and scene.sensor.state_machine.state is State.PROBATION
    serve(scene, 9)  # something else takes the processor
    assert scene.sensor.latency_monitor.slower
    scene.step()
    assert scene.sensor.path.version == FACTORY


def test_latency_is_compared_with_that_of_the_homogenizer_before(scene):
    for version, took in (("a", 3), ("b", 5)):
        serve(scene, took)
        scene.fit(version, champion=scene.sensor.path.version, cost=0.002)
        for _ in range(3):
            scene.compare_on_new_frames()
        scene.step()
        serve(scene, 5)
        for _ in range(3):
            scene.compare_on_new_frames("the one before is no better")
        scene.now += 60
        scene.step()
    assert scene.sensor.path.version == "b"
    assert scene.sensor.latency_monitor._expected == pytest.approx(0.005), "both cost the same: nothing is added"


def test_frames_are_not_timed_while_a_fit_runs(scene):
    scene.recalibration.free = False
    scene.step()
    assert not scene.sensor.latency_monitor.counting
    scene.recalibration.free = True
    scene.step()
    assert scene.sensor.latency_monitor.counting


def accuracy(scene: Scene) -> list[Any]:
    return [scene.metric("labelled_accuracy_ratio", {"bound": bound}) for bound in ("value", "lower", "upper")]


def labelled(scene: Scene, result: str) -> Any:
    return scene.metric("labelled_frames_total", {"result": result})


def test_labelled_frames_are_exported_and_their_accuracy_is_that_of_what_serves(scene):
    scene.controller.export_homogenizer(scene.sensor, "restored")
    assert all(map(math.isnan, accuracy(scene)))
    for seq in range(4):
        scene.sensor.labelled.answered(seq, 1, FACTORY)
    scene.controller.count_labels(scene.sensor, [(0, 1), (1, 1), (2, 2), (9, 1)])
    assert accuracy(scene) == [pytest.approx(2 / 3), *wilson(2, 3)]
    scene.serve("a")
    assert (scene.sensor.labelled.right, scene.sensor.labelled.wrong) == (0, 0)
    assert all(map(math.isnan, accuracy(scene))) and scene.sensor.status()["labelled"] is None
    scene.sensor.labelled.answered(5, 1, "a")
    scene.controller.count_labels(scene.sensor, [(3, 1), (5, 1)])
    assert accuracy(scene)[0] == 1 and scene.sensor.status()["labelled"]["right"] == 1
    assert [labelled(scene, result) for result in ("right", "wrong", "unknown", "outdated")] == [3, 1, 1, 1]
    scene.controller.roll_back(scene.sensor, "operator")
    assert all(map(math.isnan, accuracy(scene)))


def test_labelled_frames_count_on_when_the_camera_has_stopped(scene):
    scene.sensor.stall_detector.arrived(0.0)
    scene.sensor.labelled.answered(0, 1, FACTORY)
    scene.controller.count_labels(scene.sensor, [(0, 1)])
    scene.now = 60.0
    scene.step()
    assert scene.sensor.silent_s > 0 and scene.sensor.labelled.right == 1 and accuracy(scene)[0] == 1


def test_a_camera_that_stops_has_no_score_and_no_alarm_until_frames_come_again(scene, caplog):
    scores = {"raw": 9.0, "homogenized": 9.0, "layers": {"bn1": 7.0}, "proxy": {"confidence": 0.4}}
    scores = NOTHING_ELSE | scores
    seen = DriftCheck("front", FACTORY, scores)
    shown = [("drift_score", {"frames": "raw"}), ("drift_score", {"frames": "homogenized"})]
    shown += [("layer_drift_score", {"layer": "bn1"}), ("accuracy_proxy_ratio", {"proxy": "confidence"})]
    for scene.now in range(30):
        scene.sensor.stall_detector.arrived(scene.now)
        scene.controller.handle(seen, scene.sensor, scene.now)
    assert scene.sensor.drift_detector.alarm and [scene.metric(*metric) for metric in shown] == [9.0, 9.0, 7.0, 0.4]
    scene.now += 12
    scene.step(3)
    scene.controller.handle(seen, scene.sensor, scene.now)  # of a check that took its time
    status = scene.sensor.status()
    assert status["drift_score"] is None and status["reason"].startswith("no frames for 12 s")
    assert not scene.sensor.drift_detector.alarm and scene.metric("drift_alarm", {}) == 0
    assert all(math.isnan(scene.metric(*metric)) for metric in shown)
    assert caplog.messages.count("front: no frames for 12 s") == 1
    scene.sensor.stall_detector.arrived(scene.now)
    scene.step()
    scene.controller.handle(seen, scene.sensor, scene.now)
    assert scene.sensor.drift_score == 9.0 and "no frames" not in scene.sensor.status()["reason"]
    assert scene.sensor.drift_detector.evidence == 0, "the silence is no time of drift"


ESTIMATE = {"raw": (0.5, 0.4, 0.6), "homogenized": (0.9, 0.8, 0.95)}


def estimated(scene: Scene, of: str) -> list[float | None]:
    return [scene.metric("estimated_accuracy_ratio", {"frames": of, "bound": b}) for b in ("value", "lower", "upper")]


def test_the_estimated_accuracy_is_shown_with_its_interval_and_gone_when_it_is_unknown(scene):
    scene.controller.handle(checked(scene), scene.sensor, 0.0)
    assert scene.sensor.status()["estimated_accuracy"] is None
    assert estimated(scene, "raw") == [None] * 3, "without commissioning there is no estimate"
    seen = checked(scene)
    seen.scores["accuracy"] = ESTIMATE
    scene.controller.handle(seen, scene.sensor, 1.0)
    assert (estimated(scene, "raw"), estimated(scene, "homogenized")) == ([0.5, 0.4, 0.6], [0.9, 0.8, 0.95])
    assert scene.sensor.status()["estimated_accuracy"] == {"value": 0.9, "lower": 0.8, "upper": 0.95}
    scene.controller.handle(checked(scene), scene.sensor, 2.0)  # few classes are in view
    assert all(math.isnan(number) for number in estimated(scene, "homogenized"))


def told(scene: Scene, frames: int = 200) -> None:
    """Half of so many answers of what serves were right."""
    version = scene.sensor.path.version
    for seq in range(frames):
        scene.sensor.labelled.answered(seq, 1, version)
    scene.controller.count_labels(scene.sensor, [(seq, int(seq % 2 == 0)) for seq in range(frames)])


def seen(scene: Scene) -> None:
    """A drift check ends with an estimate."""
    check = checked(scene)
    check.scores["accuracy"] = ESTIMATE
    scene.controller.handle(check, scene.sensor, scene.now)


def test_frames_of_known_class_count_in_the_estimate_at_once(scene):
    seen(scene)
    told(scene)
    assert 0.5 < estimated(scene, "homogenized")[0] < 0.7
    assert estimated(scene, "raw")[0] == pytest.approx(0.5), "the frames are raw where no homogenizer serves"
    assert scene.sensor.status()["estimated_accuracy"]["value"] == pytest.approx(
        estimated(scene, "homogenized")[0], abs=1e-3
    )


def test_frames_that_were_labelled_before_a_drift_say_nothing_of_it(scene):
    told(scene)
    for scene.now in range(40):  # an alarm
        scene.sensor.stall_detector.arrived(scene.now)
        scene.frames(WINDOW)
        seen(scene)
    assert scene.sensor.drift_detector.alarm
    assert estimated(scene, "homogenized") == [0.9, 0.8, 0.95]


def test_no_estimate_of_another_homogenizer_is_shown_after_a_swap(scene):
    scene.fit("a" * 64)
    for _ in range(3):
        scene.compare_on_new_frames()
    seen(scene)
    assert estimated(scene, "homogenized")[0] == pytest.approx(0.9)
    scene.step()
    assert scene.sensor.path.version == "a" * 64
    assert all(math.isnan(number) for number in estimated(scene, "homogenized"))


def checked(scene: Scene, version: str = FACTORY) -> DriftCheck:
    scores = {"raw": 9.0, "homogenized": 9.0, "layers": {"bn1": 7.0}, "proxy": {"confidence": 0.4}}
    scores = NOTHING_ELSE | scores
    return DriftCheck("front", version, scores, WINDOW, scene.sensor.reservoir.added, 1.0)


def test_drift_checks_that_fail_leave_no_score_and_no_alarm_until_they_run_again(scene, caplog):
    shown = [("drift_score", {"frames": "raw"}), ("drift_score", {"frames": "homogenized"}), ("drift_alarm", {})]
    shown += [("layer_drift_score", {"layer": "bn1"}), ("accuracy_proxy_ratio", {"proxy": "confidence"})]
    for scene.now in range(30):
        scene.sensor.stall_detector.arrived(scene.now)
        scene.frames(WINDOW)
        scene.controller.handle(checked(scene), scene.sensor, scene.now)
    assert [scene.metric(*metric) for metric in shown] == [9.0, 9.0, 1.0, 7.0, 0.4]
    seen = scene.metric("last_drift_check_timestamp_seconds", {})
    scene.step()
    for _ in range(40):
        scene.now += 1
        scene.sensor.stall_detector.arrived(scene.now)
        scene.frames(WINDOW)
        scene.controller.handle(CheckFailure("front", "failed", "StoreError: damaged"), scene.sensor, scene.now)
        scene.step()
    status = scene.sensor.status()
    assert (status["drift_score"], status["drift_alarm"], status["drift_checks"]) == (None, None, "failing")
    assert status["reason"].startswith("no drift check for 41 s: StoreError: damaged")
    assert all(math.isnan(scene.metric(*metric)) for metric in shown)
    assert scene.metric("drift_checks_total", {"result": "failed"}) == 40
    assert scene.metric("last_drift_check_timestamp_seconds", {}) == seen
    assert caplog.text.count("a drift check failed") == 1, "not once a second"
    scene.controller.handle(checked(scene), scene.sensor, scene.now)
    scene.step()
    assert scene.sensor.status()["drift_checks"] == "running" and scene.sensor.drift_score == 9.0
    assert scene.metric("drift_alarm", {}) == 1, "the drift has not ended meanwhile"


def test_a_check_of_the_homogenizer_before_is_a_check_that_ran(scene):
    scene.controller.handle(checked(scene, "before"), scene.sensor, scene.now)
    assert scene.metric("drift_checks_total", {"result": "outdated"}) == 1
    assert math.isnan(scene.sensor.drift_score)


def test_a_probation_that_nothing_compares_goes_one_step_back(scene):
    scene.fit("a")
    for _ in range(3):
        scene.compare_on_new_frames()
    scene.step()
    swapped_at = scene.metric("last_swap_timestamp_seconds", {})
    scene.frames(3 * WINDOW)
    scene.now += 601
    scene.sensor.stall_detector.arrived(scene.now)
    scene.step()
    assert scene.sensor.path.version == FACTORY and scene.metric("rollbacks_total", {"reason": "unproven"}) == 1
    assert scene.metric("last_swap_timestamp_seconds", {}) > swapped_at


def test_a_recalibration_that_passes_its_deadline_is_stopped_counted_and_recorded(scene):
    scene.begin_fit()
    scene.now += 900 + 601
    scene.sensor.stall_detector.arrived(scene.now)
    scene.step()
    assert scene.aborted == ["front"] and scene.sensor.state_machine.state is State.FAILED
    assert scene.metric("fits_total", {"result": "timeout"}) == 1
    told = [details for event, details in scene.records if event == "fit"][-1]
    assert told["result"] == "timeout" and scene.sensor.last_result.startswith("timeout: no result")


def test_the_result_of_an_aborted_recalibration_is_dropped_whatever_the_sensor_does_by_then():
    scene = Scene(backoff=0, timeout=100)
    numbers = iter(range(1, 9))
    scene.recalibration.start = lambda *given, **more: next(numbers)
    scene.begin_fit()
    scene.now += 701
    scene.sensor.stall_detector.arrived(scene.now)
    scene.step()
    scene.sensor.state_machine.request()
    scene.step()
    assert scene.sensor.state_machine.state is State.COLLECTING
    records = list(scene.records)
    for candidate in (None, Candidate(PreparedHomogenizer("a", runner := Runner()), FACTORY)):
        late = JobResult("front", Result.FAILED, "it died", candidate, job=1)
        scene.controller.handle(late, scene.sensor, scene.now)
    assert scene.sensor.state_machine.state is State.COLLECTING and scene.records == records and runner.closed
    assert scene.metric("fits_total", {"result": "timeout"}) == 1
    assert all(scene.metric("fits_total", {"result": result}) is None for result in ("failed", "outdated"))
    scene.step()
    scene.controller.handle(JobResult("front", Result.FAILED, "it died", job=2), scene.sensor, scene.now)
    assert scene.metric("fits_total", {"result": "failed"}) == 1


# ---- what is tried again, and when


@pytest.mark.parametrize(
    ("raw", "raw_clean", "for_good"),
    [(9.0, False, True), (9.0, True, False), (30.0, False, False), (4.0, False, False)],
)
def test_only_what_failed_on_its_own_drift_is_ruled_out_for_good(scene, raw, raw_clean, for_good):
    scene.serve("a")
    for _ in range(2):
        scene.compare_on_new_frames(raw=raw, raw_clean=raw_clean)
    scene.step()
    assert scene.sensor.path.version == FACTORY and "rollback" in scene.events
    assert (scene.sensor.withdrawn, scene.sensor.set_aside) == (({"a"}, set()) if for_good else (set(), {"a"}))


def test_what_an_operator_took_back_may_be_recalled_when_the_drift_is_over(scene):
    scene.serve("a")
    scene.controller.roll_back(scene.sensor, "operator")
    assert scene.sensor.set_aside == {"a"} and scene.written == [("serves", "a"), ("serves", FACTORY)]
    scene.controller.handle(checked(scene), scene.sensor, scene.now)
    assert scene.sensor.set_aside == {"a"}, "while the drift lasts, it would come back against the operator's will"
    scene.clean_check()
    assert scene.sensor.set_aside == set()


def test_a_recall_that_breaks_ends_no_collecting_and_counts_as_no_fit(scene):
    scene.sensor.state_machine.request()
    scene.step()
    for result in (Result.FAILED, Result.TIMEOUT):
        scene.controller.handle(JobResult("front", result, "it died", recall=True), scene.sensor, scene.now)
        assert scene.sensor.state_machine.state is State.COLLECTING
        assert scene.metric("fits_total", {"result": result.value}) is None and "fit" not in scene.events


def test_a_harmful_homogenizer_gives_way_and_the_fit_under_way_still_serves(scene):
    scene.serve("a")
    for _ in range(3):
        scene.compare_on_new_frames("the one before is no better")
    scene.now += 60
    scene.step()
    scene.begin_fit()
    scene.sensor.drift_detector.alarm, scene.sensor.harmful = True, True
    scene.step()
    assert scene.sensor.path.version == FACTORY and scene.sensor.state_machine.state is State.FITTING
    assert scene.sensor.drift_detector.alarm, "the frames are as they were"
    candidate = Candidate(PreparedHomogenizer("b", Runner()), champion="a")
    scene.controller.handle(JobResult("front", Result.ACCEPTED, "better", candidate), scene.sensor, scene.now)
    assert scene.sensor.state_machine.state is State.SHADOW
    for _ in range(3):
        scene.compare_on_new_frames()
    scene.step()
    assert scene.sensor.path.version == "b"


def test_a_candidate_that_serves_already_is_no_candidate(scene):
    scene.begin_fit()
    candidate = Candidate(PreparedHomogenizer(FACTORY, None), champion="a", recalled=True)
    scene.controller.handle(JobResult("front", Result.FACTORY, "clean", candidate), scene.sensor, scene.now)
    assert scene.sensor.state_machine.state is State.FACTORY and scene.sensor.candidate is None


def test_a_version_that_was_ruled_out_is_brought_back_through_the_shadow(scene):
    started: list[Any] = []
    scene.recalibration.start = lambda sensor, trigger, frames, restore: started.append((trigger, restore))
    with pytest.raises(OrderRefused, match="too few frames"):
        scene.controller.restore(scene.sensor, "a")
    scene.frames(WINDOW)
    scene.sensor.withdrawn, scene.sensor.set_aside = {"a", "b"}, {"a"}
    scene.controller.restore(scene.sensor, "a")
    assert started == [("operator", "a")] and scene.sensor.state_machine.state is State.COMPILING
    assert (scene.sensor.withdrawn, scene.sensor.set_aside) == ({"b"}, set())
    assert scene.written == [("withdrawn", ["b"])]
    candidate = Candidate(PreparedHomogenizer("a", Runner()), FACTORY, recalled=True)
    scene.controller.handle(JobResult("front", Result.RECALLED, "brought back", candidate), scene.sensor, scene.now)
    for _ in range(3):
        scene.compare_on_new_frames()
    scene.step()
    assert scene.sensor.path.version == "a" and scene.sensor.state_machine.state is State.PROBATION
    with pytest.raises(OrderRefused, match="serves already"):
        scene.controller.restore(scene.sensor, "a")
    with pytest.raises(OrderRefused, match="in the state probation: wait"):
        scene.controller.restore(scene.sensor, "b")


def test_a_stop_records_the_end_of_what_it_cuts_off(scene):
    scene.begin_fit()
    scene.controller.stop(scene.sensor)
    cut = {"result": "stopped", "reason": "recald was stopped", "trigger": "operator", "dossier": None}
    assert scene.records[-1] == ("fit", cut)
    scene.sensor.candidate = Candidate(PreparedHomogenizer("a", runner := Runner()), FACTORY)
    scene.sensor.state_machine.candidate_ready(scene.now)
    scene.controller.stop(scene.sensor)
    assert scene.records[-1][0] == "candidate dropped" and scene.records[-1][1]["result"] == "stopped" and runner.closed
    before = list(scene.records)
    Scene().controller.stop(scene.sensor)
    assert scene.records == before


def test_a_stored_version_that_cannot_serve_is_not_tried_again(scene):
    scene.controller.handle(JobResult("front", Result.FAILED, "does not load", unusable="a"), scene.sensor, 0.0)
    assert scene.written == [("withdrawn", ["a"])]


def test_a_status_tells_how_long_a_fit_runs_and_when_it_will_end(scene):
    assert scene.sensor.status()["elapsed_s"] is None
    scene.begin_fit()
    for ratio in (0.25, 0.5):
        scene.now += 10
        scene.controller.handle(JobProgress("front", "fitting", ratio, {}), scene.sensor, scene.now)
        scene.step()
    told = scene.sensor.status()
    assert told["elapsed_s"] == pytest.approx(20, abs=0.3) and told["remaining_s"] == pytest.approx(20, abs=0.5)


# ---- the camera beside its baseline


def beside(scene: Scene, drift: float, score: float = 1.0, **scores: Any) -> None:
    """A check of the frames that are there, with a baseline."""
    found = NOTHING_ELSE | {"raw": score, "homogenized": score, "layers": {}, "proxy": {}} | scores
    found |= {"camera": {"homogenized": (drift, 0.5, True)}, "learned": 1.0}
    added = scene.sensor.reservoir.added
    scene.controller.handle(DriftCheck("front", FACTORY, found, WINDOW, added, 1.0), scene.sensor, scene.now)


def test_the_same_frames_are_evidence_once(scene):
    scene.frames(WINDOW)
    for _ in range(10):
        beside(scene, 12.0)
    assert not scene.sensor.drift_detector.alarm
    scene.frames(WINDOW - 1)
    beside(scene, 12.0)
    assert not scene.sensor.drift_detector.alarm
    scene.frames(1)
    beside(scene, 12.0)
    assert scene.sensor.drift_detector.alarm and scene.sensor.status()["camera"]["homogenized"]["drift"] == 12.0


def test_an_alarm_is_told_with_what_raised_it(scene, caplog):
    for drift in (12.0, math.nan):
        scene.frames(WINDOW)
        beside(scene, drift)
    assert scene.records[-1] == ("drift alarm", {"drift": None, "score": 1.0, "homogenizer": FACTORY})
    for _ in range(8):
        scene.frames(WINDOW)
        beside(scene, 0.5)
    assert scene.records[-1] == ("drift alarm over", {"drift": 0.5, "score": 1.0, "homogenizer": FACTORY})
    assert "drift alarm over, 0.5 standard deviations beside healthy frames, score 1.00" in caplog.text


def test_what_happened_to_the_camera_is_recorded_once_in_an_alarm(scene, caplog):
    for words in ([], ["exposure -0.8 stops"], ["exposure -0.9 stops"], [], ["blur 0.9 px"]):
        beside(scene, 0.0, read_outs={"found": [], "words": words})
        assert scene.sensor.status()["drifted"] == words
    told = [record for record in scene.records if record[0] == "read-out"]
    assert told == [("read-out", {"camera": [words]}) for words in ("exposure -0.8 stops", "blur 0.9 px")]
    assert "front: the camera: blur 0.9 px" in caplog.text


def test_the_frame_that_is_shown_goes_with_the_scores_of_its_check(scene):
    beside(scene, 0.0, shown=["cmVjZWl2ZWQ=", None])
    assert scene.sensor.shown is not None
    scene.sensor.forget_scores()
    assert scene.sensor.shown is None


def test_learning_anew_is_asked_for_until_a_check_has_done_it(scene):
    scene.sensor.relearn = True
    beside(scene, 0.0)
    assert scene.sensor.relearn
    beside(scene, 0.0, relearned=True)
    assert not scene.sensor.relearn


def test_frames_from_before_a_silence_are_no_evidence_after_it(scene):
    scene.sensor.stall_detector.arrived(0.0)
    scene.frames(WINDOW // 2)
    scene.now = 60.0
    scene.step()
    assert scene.sensor.silent_s > 0
    scene.sensor.stall_detector.arrived(scene.now)
    scene.step()
    scene.frames(WINDOW // 2)
    beside(scene, 12.0)
    assert scene.sensor.drift_detector.evidence == 0, "half of the window is from before"


def test_scenes_of_few_classes_may_be_healthy_before_a_baseline_is_known(scene):
    assert scene.sensor.may_be_healthy
    for scene.now in range(20):
        scene.frames(1)
        found = {"raw": 3.0, "homogenized": 3.0, "layers": {}, "proxy": {}, "label_shift": True}
        check = DriftCheck("front", FACTORY, NOTHING_ELSE | found, WINDOW, scene.sensor.reservoir.added, 1.0)
        scene.controller.handle(check, scene.sensor, scene.now)
    assert scene.sensor.drift_detector.alarm and scene.sensor.may_be_healthy
    scene.sensor.label_shift = False
    assert not scene.sensor.may_be_healthy
