"""What an operator can order of a sensor: each is carried out between two frames, and answers what comes next."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from daemon.recalibration.controller import Controller
from daemon.recalibration.sensor import Sensor
from daemon.recalibration.state_machine import OrderRefused
from daemon.state.audit_writer import AuditWriter
from daemon.state.restart import HELD_BY_OPERATOR
from deploy.store.artefacts import FACTORY

ANSWERS = ("approve", "reject")  # to a candidate, which they may name
LEAST_DIGITS = 8  # of its version, as `recald status` shows it


@dataclass(frozen=True)
class Order:
    """What `by` orders of a sensor, as it came: `version` is of the candidate that they mean, if they say so."""

    name: str
    sensor: str
    by: str = "unknown"
    version: Any = None


class Orders:
    """Carries out orders, on the frame thread alone."""

    def __init__(self, controller: Controller, audit_writer: AuditWriter):
        self._controller = controller
        self._audit_writer = audit_writer
        self._known: dict[str, Callable[[Sensor], str]] = {
            "recalibrate": self._recalibrate,
            "approve": self._approve,
            "reject": self._reject,
            "rollback": self._roll_back,
            "hold": self._hold,
            "release": self._release,
        }

    def names(self) -> tuple[str, ...]:
        return tuple(self._known)

    def carry_out(self, order: Order, sensor: Sensor) -> dict[str, Any]:
        """What happened and what comes next; ValueError for an order that makes no sense now."""
        meant = {"candidate": _waiting(sensor)} if order.name in ANSWERS else {}
        if order.version is not None:
            _refuse_another(order, sensor)
        said = self._known[order.name](sensor)
        self._audit_writer.record(sensor.name, "order", {"order": order.name, "by": order.by} | meant)
        return {"sensor": sensor.name, "said": said}

    def _recalibrate(self, sensor: Sensor) -> str:
        sensor.state_machine.request()
        return "collects frames for a fit; `recald status` shows how it goes"

    def _approve(self, sensor: Sensor) -> str:
        sensor.state_machine.approve()
        return f"candidate {_candidate(sensor)} serves as soon as nothing holds it, on probation"

    def _reject(self, sensor: Sensor) -> str:
        sensor.state_machine.reject()
        return f"candidate {_candidate(sensor)} is dropped; {sensor.path.version[:12]} goes on serving"

    def _roll_back(self, sensor: Sensor) -> str:
        if sensor.path.version == sensor.path.fallback == FACTORY:
            raise OrderRefused("the factory homogenizer serves, there is nothing to go back to")
        taken_back = sensor.path.version
        self._controller.roll_back(sensor, "operator")
        never = "" if taken_back == FACTORY else "; what was taken back is not tried again"
        return f"{sensor.path.version[:12]} serves again{never}"

    def _hold(self, sensor: Sensor) -> str:
        sensor.operator_hold = HELD_BY_OPERATOR
        return "nothing is swapped until `recald hold --release`, over restarts too; what fails on a frame goes back"

    def _release(self, sensor: Sensor) -> str:
        sensor.operator_hold = ""
        return "swaps are allowed again"


def _refuse_another(order: Order, sensor: Sensor) -> None:
    """An answer is to the candidate that the operator has seen, and to no newer one."""
    version = order.version
    if order.name not in ANSWERS:
        raise OrderRefused(f"{order.name} takes no version, only {' and '.join(ANSWERS)} do")
    if not isinstance(version, str) or not (
        version == FACTORY or re.fullmatch(f"[0-9a-f]{{{LEAST_DIGITS},64}}", version)
    ):
        raise OrderRefused(f"{str(version)[:80]!r} is no version: give {LEAST_DIGITS} of its digits or more")
    if not _waiting(sensor).startswith(version):
        raise OrderRefused(f"candidate {version[:12]} does not wait, {_candidate(sensor)} does: see `recald status`")


def _candidate(sensor: Sensor) -> str:
    return _waiting(sensor)[:12]


def _waiting(sensor: Sensor) -> str:
    return "none" if sensor.candidate is None else sensor.candidate.prepared.version
