"""The orders that an operator can give for a sensor. Each is carried out between two frames."""

from __future__ import annotations

import queue
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass
from typing import Any

from calibrate.errors import RecaldError
from daemon.exit_codes import TemporaryError
from daemon.operator.label import describe
from daemon.operator.peer import Peer, claimed_name
from daemon.operator.stored_version import is_version, no_version
from daemon.recalibration.controller import Controller
from daemon.recalibration.sensor import Sensor
from daemon.recalibration.state_machine import OrderRefused
from daemon.state.audit_writer import AuditWriter
from daemon.state.restart import HELD_BY_OPERATOR
from daemon.states import HOLD_MEANING
from deploy.store.artefacts import FACTORY
from deploy.store.retention import StoredHomogenizer

ORDER_TIMEOUT_S = 3.0  # an order waits until the frame that is served now is done
CANDIDATE_ORDERS = ("approve", "reject")  # they may name the version of the candidate
RECORD_TIMEOUT_S = 1.0  # an answer waits for its record, so that `recald history` shows it, but not for a bad disk
LABELS = "labels"  # its record is an event of its own: a restart reads all orders


@dataclass(frozen=True)
class Order:
    """An order as received. peer: who gave it. version: of the candidate that is meant; None means the waiting one.

    claimed: the name that the client gave itself, such as that of the person behind sudo; it proves nothing.
    labels: sequence numbers of frames and their classes.
    """

    name: str
    sensor: str
    peer: Peer = Peer()
    version: Any = None
    claimed: str = ""
    labels: Sequence[tuple[int, int]] = ()

    @property
    def given_by(self) -> dict[str, Any]:
        """Who gave it, for the audit log."""
        pid = {} if self.peer.pid is None else {"pid": self.peer.pid}
        claimed = {"claimed": self.claimed} if self.claimed not in ("", self.peer.user) else {}
        return {"by": self.peer.user} | pid | claimed


class OrderQueue:
    """Passes orders from the control thread to the frame thread, and the answers back."""

    def __init__(
        self,
        orders: Orders,
        sensors: dict[str, Sensor],
        find_stored: Callable[[object], StoredHomogenizer],
        read_labels: Callable[[object], Sequence[tuple[int, int]]],
        wait_until_recorded: Callable[[float], None],
    ):
        """find_stored: return the stored homogenizer whose version begins so; raises OrderRefused.

        read_labels: return the labels of a request; raises RecaldError. wait_until_recorded: return when all records
        are written, after so many seconds at the latest.
        """
        self._orders = orders
        self._sensors = sensors
        self._find_stored = find_stored
        self._read_labels = read_labels
        self._wait_until_recorded = wait_until_recorded
        self._waiting: queue.SimpleQueue[tuple[Order, Future[dict[str, Any]]]] = queue.SimpleQueue()

    def submit(self, request: dict[str, Any]) -> dict[str, Any]:
        """Queue the order of a request and return its answer. Called by the control thread.

        Raises RecaldError for a request that is no order for a configured sensor, and for an order that is refused or
        not carried out in time.
        """
        command, name, version = request["command"], request.get("sensor"), request.get("version")
        if command not in self._orders.names():
            raise RecaldError(f"unknown command {command!r}: status, {', '.join(self._orders.names())}")
        if command == "restore":
            stored = self._find_stored(version)
            name, version = stored.sensor if name is None else name, stored.version
        if not isinstance(name, str) or name not in self._sensors:
            raise RecaldError(f"unknown sensor {name!r}: configured are {', '.join(self._sensors)}")
        labels = self._read_labels(request.get("labels")) if command == LABELS else ()
        answer: Future[dict[str, Any]] = Future()
        claimed = claimed_name(request.get("by"))
        order = Order(command, name, request.get("peer", Peer()), version, claimed, labels)
        self._waiting.put((order, answer))
        try:
            carried_out = answer.result(ORDER_TIMEOUT_S)
            self._wait_until_recorded(RECORD_TIMEOUT_S)
            return carried_out
        except FutureTimeout:
            if answer.cancel():
                raise TemporaryError("the daemon is busy, and the order was dropped: try again") from None
            begun = "the order is being carried out, no answer yet: `recald history` shows what came of it"
            raise TemporaryError(begun) from None

    def carry_out_all(self) -> None:
        """Carry out the orders that wait. Called by the frame thread, between two frames."""
        while not self._waiting.empty():
            order, answer = self._waiting.get()
            if not answer.set_running_or_notify_cancel():  # nobody waits for the answer any more
                continue
            try:
                answer.set_result(self._orders.carry_out(order, self._sensors[order.sensor]))
            except RecaldError as error:
                answer.set_exception(RecaldError(f"{order.sensor}: {error}"))


class Orders:
    """Carries out orders, on the frame thread alone."""

    def __init__(self, controller: Controller, audit_writer: AuditWriter):
        self._controller = controller
        self._audit_writer = audit_writer
        self._handlers: dict[str, Callable[[Sensor, Order], str]] = {
            "recalibrate": self._recalibrate,
            "approve": self._approve,
            "reject": self._reject,
            "rollback": self._roll_back,
            "restore": self._restore,
            "relearn": self._relearn,
            "hold": self._hold,
            "release": self._release,
        }

    def names(self) -> tuple[str, ...]:
        """Return the names of all orders."""
        return (*self._handlers, LABELS)

    def carry_out(self, order: Order, sensor: Sensor) -> dict[str, Any]:
        """Carry out an order, record it, and return what happened and what comes next.

        Raises OrderRefused for an order that is not possible now.
        """
        candidate = {"candidate": _candidate_version(sensor)} if order.name in CANDIDATE_ORDERS else {}
        if order.version is not None and order.name != "restore":
            _check_version(order, sensor)
        if order.name == LABELS:
            return self._count_labels(sensor, order)
        message = self._handlers[order.name](sensor, order)
        restored = {"version": order.version} if order.name == "restore" else {}
        details = {"order": order.name} | order.given_by | candidate | restored
        self._audit_writer.record(sensor.name, "order", details)
        return {"sensor": sensor.name, "said": message}

    def _count_labels(self, sensor: Sensor, order: Order) -> dict[str, Any]:
        results = self._controller.count_labels(sensor, order.labels)
        details = {"homogenizer": sensor.path.version} | results | order.given_by
        self._audit_writer.record(sensor.name, LABELS, details)
        labelled = sensor.labelled.status()
        said = describe(results, labelled)
        return {"sensor": sensor.name, "said": said, "labelled": labelled} | results

    def _recalibrate(self, sensor: Sensor, order: Order) -> str:
        sensor.state_machine.request()
        return "collects frames for a fit; `recald status` shows the progress"

    def _approve(self, sensor: Sensor, order: Order) -> str:
        sensor.state_machine.approve()
        return f"candidate {_candidate_version(sensor)[:12]} serves as soon as nothing holds it, on probation"

    def _reject(self, sensor: Sensor, order: Order) -> str:
        sensor.state_machine.reject()
        return f"candidate {_candidate_version(sensor)[:12]} is dropped; {sensor.path.version[:12]} goes on serving"

    def _roll_back(self, sensor: Sensor, order: Order) -> str:
        before = sensor.path.version
        if before == sensor.path.fallback == FACTORY:
            raise OrderRefused("the factory homogenizer serves, there is nothing to go back to")
        self._controller.roll_back(sensor, "operator")
        withdrawn = "" if before == FACTORY else f"; {before[:12]} is not recalled until the drift is over"
        return f"{sensor.path.version[:12]} serves again{withdrawn}"

    def _restore(self, sensor: Sensor, order: Order) -> str:
        self._controller.restore(sensor, order.version)
        return f"{order.version[:12]} is loaded, runs in the shadow, and serves on probation if it is better there"

    def _relearn(self, sensor: Sensor, order: Order) -> str:
        sensor.relearn = True
        sensor.drift_detector.reset()
        return (
            "the next drift check forgets how its healthy frames look, and learns it anew; what was commissioned stays"
        )

    def _hold(self, sensor: Sensor, order: Order) -> str:
        sensor.operator_hold = HELD_BY_OPERATOR
        return f"until `recald hold --release`, also after a restart: {HOLD_MEANING}"

    def _release(self, sensor: Sensor, order: Order) -> str:
        sensor.operator_hold = ""
        return "swaps are allowed again"


def _check_version(order: Order, sensor: Sensor) -> None:
    """Refuse an order for another candidate than the waiting one: the operator has not seen that one."""
    version, waiting = order.version, _candidate_version(sensor)
    if order.name not in CANDIDATE_ORDERS:
        raise OrderRefused(f"{order.name} takes no version, only {' and '.join(CANDIDATE_ORDERS)} do")
    if not is_version(version):
        raise no_version(version)
    if not waiting.startswith(version):
        raise OrderRefused(f"candidate {version[:12]} does not wait, {waiting[:12]} does: see `recald status`")


def _candidate_version(sensor: Sensor) -> str:
    return "none" if sensor.candidate is None else sensor.candidate.prepared.version
