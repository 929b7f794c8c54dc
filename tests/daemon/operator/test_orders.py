"""Orders cross from the control thread to the frame thread: carried out once, or not at all."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from calibrate.errors import RecaldError
from calibrate.homogenizer import Homogenizer
from daemon.config import RecalibrateConfig
from daemon.exit_codes import TemporaryError
from daemon.model.labels import ClassNames, LabelReader
from daemon.operator.orders import Order, OrderQueue, Orders
from daemon.operator.peer import Peer
from daemon.operator.stored_version import find_stored
from daemon.recalibration.decisions import Commit, Facts
from daemon.recalibration.sensor import Candidate, Sensor
from daemon.recalibration.state_machine import OrderRefused, StateMachine
from daemon.states import State
from deploy.path import InferencePath, PreparedHomogenizer
from deploy.store.artefacts import FACTORY, ArtefactStore
from deploy.store.retention import StoredHomogenizer

VERSION = "0123456789abcdef" * 4
MODEL = "d" * 64
ROLLBACK = {"command": "rollback", "sensor": "front", "by": "somebody", "peer": Peer("ada", 7)}


class Frames:
    """The frame thread's end of the queue: it carries out orders when it is asked to."""

    def __init__(self) -> None:
        self.done: list[tuple[str, dict[str, Any]]] = []
        self.waited: list[int] = []  # how many orders were carried out then
        orders: Any = SimpleNamespace(names=lambda: ("rollback", "restore", "labels"), carry_out=self.carry_out)
        sensor: Any = object()
        read_labels = LabelReader(ClassNames(2, ["cat", "dog"])).read
        self.queue = OrderQueue(orders, {"front": sensor}, self.find_stored, read_labels, self.wait_until_recorded)

    def wait_until_recorded(self, timeout: float) -> None:
        self.waited.append(len(self.done))

    def find_stored(self, version: object) -> StoredHomogenizer:
        if version != VERSION[:8]:
            raise OrderRefused(f"homogenizer {version} is not stored")
        return StoredHomogenizer(VERSION, "front", MODEL, "", 0.0, Path())

    def carry_out(self, order: Order, sensor: object) -> dict[str, str]:
        self.done.append((order.name, order.given_by))
        if len(self.done) > 1:
            raise RecaldError("there is nothing to go back to")
        return {"said": "factory serves again"}


@pytest.fixture
def frames() -> Frames:
    return Frames()


def ask(frames: Frames) -> dict[str, Any]:
    """Ask from another thread, and carry out orders until there is an answer."""
    with ThreadPoolExecutor(1) as control:
        answer = control.submit(frames.queue.submit, ROLLBACK)
        while not answer.done():
            frames.queue.carry_out_all()
        return answer.result()


def test_an_order_is_carried_out_and_answered(frames):
    assert ask(frames) == {"said": "factory serves again"}
    assert frames.done == [("rollback", {"by": "ada", "pid": 7, "claimed": "somebody"})]
    assert frames.waited == [1], "the answer comes when the record is written"


@pytest.mark.parametrize(
    ("by", "claimed"),
    [(None, {}), ("ada", {}), ({"a": 1}, {}), ("x" * 99, {"claimed": "x" * 64}), ("a\x1b[2J\n", {"claimed": "a?[2J "})],
)
def test_a_name_that_the_client_gives_is_a_short_note_beside_the_user(frames, by, claimed):
    with ThreadPoolExecutor(1) as control:
        answer = control.submit(frames.queue.submit, ROLLBACK | {"by": by})
        while not answer.done():
            frames.queue.carry_out_all()
    assert frames.done == [("rollback", {"by": "ada", "pid": 7} | claimed)]


def test_an_order_that_takes_long_is_not_called_dropped(frames, monkeypatch):
    """It was begun: whoever gives it again may take back two homogenizers."""
    monkeypatch.setattr("daemon.operator.orders.ORDER_TIMEOUT_S", 0.2)
    told = threading.Event()
    frames.queue._orders.carry_out = lambda *_: told.wait(10) and {"said": "done"}
    with ThreadPoolExecutor(1) as control:
        answer = control.submit(frames.queue.submit, ROLLBACK)
        while frames.queue._waiting.empty():
            pass
        with ThreadPoolExecutor(1) as frame_thread:
            frame_thread.submit(frames.queue.carry_out_all)
            with pytest.raises(TemporaryError, match="no answer yet: `recald history` shows"):
                answer.result()
            told.set()


def test_a_refusal_names_the_sensor(frames):
    ask(frames)
    with pytest.raises(ValueError, match="^front: there is nothing to go back to$"):
        ask(frames)


def test_an_order_that_waited_too_long_is_dropped_for_good(frames, monkeypatch):
    monkeypatch.setattr("daemon.operator.orders.ORDER_TIMEOUT_S", 0.05)
    with pytest.raises(ValueError, match="the order was dropped: try again"):
        frames.queue.submit(ROLLBACK)
    frames.queue.carry_out_all()
    assert frames.done == []


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        ({"command": "explode", "sensor": "front"}, "unknown command 'explode': status, rollback, restore, labels"),
        ({"command": "rollback", "sensor": "side"}, "unknown sensor 'side': configured are front"),
        ({"command": "rollback", "sensor": ["front"]}, "unknown sensor .*: configured are front"),
        ({"command": "rollback", "sensor": {}}, "unknown sensor .*: configured are front"),
    ],
)
def test_what_makes_no_sense_is_answered_at_once(frames, request_, said):
    with pytest.raises(ValueError, match=said):
        frames.queue.submit(request_)


# ---- the candidate that is meant


class Desk:
    """An operator before a candidate that waits for approval."""

    def __init__(self, candidate: str = VERSION) -> None:
        self.records: list[tuple[str, dict[str, Any]]] = []
        machine = StateMachine(RecalibrateConfig(mode="supervised", shadow=0), 0.0)
        runner: Any = None
        path, unused = InferencePath(runner), cast(Any, None)
        waiting = Candidate(PreparedHomogenizer(candidate, None), FACTORY)
        self.sensor = Sensor("front", path, unused, unused, machine, candidate=waiting)
        machine.candidate_ready(0.0)
        for _ in range(3):
            machine.compared(True)
        assert machine.step(1.0, Facts()) is None and machine.state is State.AWAITING_APPROVAL
        audit_writer: Any = SimpleNamespace(record=self.record)
        self.orders = Orders(unused, audit_writer)

    def record(self, sensor: str, event: str, details: dict[str, Any]) -> None:
        self.records.append((event, details))

    def order(self, name: str, version: object = None) -> str:
        return self.orders.carry_out(Order(name, "front", Peer("anna", 9), version), self.sensor)["said"]

    def decision(self) -> object:
        return self.sensor.state_machine.step(2.0, Facts())


@pytest.mark.parametrize("version", [None, VERSION[:8], VERSION[:9], VERSION])
def test_the_candidate_that_waits_is_approved_and_named_in_the_log(version):
    desk = Desk()
    assert desk.order("approve", version).startswith("candidate 0123456789ab serves")
    assert desk.records == [("order", {"order": "approve", "by": "anna", "pid": 9, "candidate": VERSION})]
    assert desk.decision() == Commit()


def test_the_factory_homogenizer_can_be_the_candidate():
    desk = Desk(FACTORY)
    desk.order("approve", FACTORY)
    assert desk.decision() == Commit()


@pytest.mark.parametrize("order", ["approve", "reject"])
@pytest.mark.parametrize("version", ["f" * 8, VERSION[:-1] + "0", FACTORY])
def test_an_answer_to_another_candidate_is_refused_with_the_one_that_waits(order, version):
    desk = Desk()
    with pytest.raises(OrderRefused, match=f"candidate {version[:12]} does not wait, 0123456789ab does"):
        desk.order(order, version)
    assert desk.records == [] and desk.decision() is None


@pytest.mark.parametrize("version", ["", VERSION[:7], "0123456X", VERSION + "0", ".{64}", 7, ["a"], {}])
def test_what_is_no_version_is_refused_in_one_line(version):
    desk = Desk()
    with pytest.raises(OrderRefused, match="^.* is no version: give 8 of its digits or more$"):
        desk.order("approve", version)
    assert desk.decision() is None


def test_where_none_waits_a_version_is_refused_too():
    desk = Desk()
    desk.sensor.candidate = None
    with pytest.raises(OrderRefused, match="does not wait, none does"):
        desk.order("reject", VERSION)


def test_an_order_that_answers_no_candidate_takes_no_version():
    desk = Desk()
    with pytest.raises(OrderRefused, match="hold takes no version, only approve and reject do"):
        desk.order("hold", VERSION)
    assert desk.sensor.operator_hold == ""


# ---- labelled frames


def test_labels_reach_the_frame_thread_as_numbers_of_classes(frames):
    taken: list[Order] = []
    frames.queue._orders.carry_out = lambda order, sensor: taken.append(order) or {"said": "done"}
    with ThreadPoolExecutor(1) as control:
        request = {"command": "labels", "sensor": "front", "labels": [[7, "dog"], [8, 0]]}
        answer = control.submit(frames.queue.submit, request)
        while not answer.done():
            frames.queue.carry_out_all()
        assert answer.result() == {"said": "done"}
    assert [(order.name, order.labels) for order in taken] == [("labels", [(7, 1), (8, 0)])]


def test_labels_that_are_refused_never_reach_it(frames):
    with pytest.raises(ValueError, match="'cow' is no class"):
        frames.queue.submit({"command": "labels", "sensor": "front", "labels": [[7, "dog"], [8, "cow"]]})
    assert frames.queue._waiting.empty()


def test_labels_are_recorded_as_counts_of_what_serves_and_who_told_them_without_any_label():
    desk = Desk()
    results = {"right": 2, "wrong": 0, "unknown": 1, "outdated": 0, "repeated": 0}
    desk.orders._controller = SimpleNamespace(count_labels=lambda sensor, labels: results)
    answer = desk.orders.carry_out(Order("labels", "front", Peer("anna", 9), labels=[(7, 1)]), desk.sensor)
    assert desk.records == [("labels", {"homogenizer": FACTORY} | results | {"by": "anna", "pid": 9})]
    said = "2 labelled frames counted, 2 right; 1 unknown; 0 outdated; none since the last swap"
    assert answer == {"sensor": "front", "said": said, "labelled": None} | results


# ---- a stored homogenizer is brought back


def test_the_sensor_of_a_restored_homogenizer_is_the_one_it_was_fitted_for(frames):
    taken: list[Order] = []
    frames.queue._orders.carry_out = lambda order, sensor: taken.append(order) or {"said": "done"}
    for sensor in ({}, {"sensor": "front"}):
        with ThreadPoolExecutor(1) as control:
            request = {"command": "restore", "version": VERSION[:8]} | sensor
            answer = control.submit(frames.queue.submit, request)
            while not answer.done():
                frames.queue.carry_out_all()
            assert answer.result() == {"said": "done"}
    assert [(order.name, order.sensor, order.version) for order in taken] == [("restore", "front", VERSION)] * 2


@pytest.mark.parametrize(("sensor", "said"), [("side", "unknown sensor 'side'"), (None, "is not stored")])
def test_a_restore_that_makes_no_sense_is_answered_at_once(frames, sensor, said):
    version = "f" * 8 if sensor is None else VERSION[:8]
    with pytest.raises(ValueError, match=said):
        frames.queue.submit({"command": "restore", "version": version, "sensor": sensor})


def test_a_restore_is_recorded_with_its_version():
    desk, restored = Desk(), []
    desk.orders._controller = SimpleNamespace(restore=lambda sensor, version: restored.append(version))
    assert desk.order("restore", VERSION).startswith("0123456789ab is loaded, runs in the shadow")
    assert restored == [VERSION] and desk.records[-1][1]["version"] == VERSION


def stored(store: ArtefactStore, bias: float, model: str = MODEL) -> str:
    homogenizer = Homogenizer(3, 4, 5, kernel_size=3).eval()
    with torch.no_grad():
        homogenizer.bias += bias
    return store.put(homogenizer, {"model": model, "sensor": "front"}, b"compiled", "eager")


def test_a_stored_homogenizer_is_found_by_its_first_digits(tmp_path):
    store = ArtefactStore(tmp_path)
    version, other = stored(store, 0.25), stored(store, 0.5, model="e" * 64)
    assert find_stored(store, MODEL, version[:8]).version == version
    for digits, said in (
        ("0" * 8, "homogenizer 00000000 is not stored"),
        (other, f"homogenizer {other[:12]} belongs to another model"),
        (FACTORY, "factory is not stored: `recald rollback`"),
        (version[:7], "is no version: give 8"),
        (None, "'None' is no version"),
        (["a"], "is no version"),
    ):
        with pytest.raises(OrderRefused, match=said):
            find_stored(store, MODEL, digits)


def test_an_order_to_learn_anew_waits_for_the_next_check_and_ends_the_alarm():
    desk, resets = Desk(), []
    desk.sensor.drift_detector = cast(Any, SimpleNamespace(reset=lambda: resets.append("alarm")))
    assert desk.order("relearn").startswith("the next drift check forgets")
    assert desk.sensor.relearn and resets == ["alarm"]
    assert desk.records == [("order", {"order": "relearn", "by": "anna", "pid": 9})]
