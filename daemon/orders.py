"""What an operator can order of a sensor: each is carried out between two frames, and answers what comes next."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from daemon.recalibrator import Refused
from daemon.recorder import Recorder
from daemon.remembered import BY_OPERATOR
from daemon.sensor import Sensor
from daemon.upkeep import Upkeep
from deploy.store import FACTORY


class Orders:
    """Carries out orders, on the frame thread alone."""

    def __init__(self, upkeep: Upkeep, record: Recorder):
        self._upkeep = upkeep
        self._record = record
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

    def carry_out(self, order: str, sensor: Sensor, by: str) -> dict[str, Any]:
        """What happened and what comes next; ValueError for an order that makes no sense now."""
        said = self._known[order](sensor)
        self._record(sensor.name, "order", {"order": order, "by": by})
        return {"sensor": sensor.name, "said": said}

    def _recalibrate(self, sensor: Sensor) -> str:
        sensor.recalibrator.request()
        return "collects frames for a fit; `recald status` shows how it goes"

    def _approve(self, sensor: Sensor) -> str:
        sensor.recalibrator.approve()
        return f"candidate {_candidate(sensor)} serves as soon as nothing holds it, on probation"

    def _reject(self, sensor: Sensor) -> str:
        sensor.recalibrator.reject()
        return f"candidate {_candidate(sensor)} is dropped; {sensor.path.version[:12]} goes on serving"

    def _roll_back(self, sensor: Sensor) -> str:
        if sensor.path.version == sensor.path.fallback == FACTORY:
            raise Refused("the factory homogenizer serves, there is nothing to go back to")
        self._upkeep.roll_back(sensor, "operator")
        return f"{sensor.path.version[:12]} serves again; what was taken back is not tried again"

    def _hold(self, sensor: Sensor) -> str:
        sensor.operator_hold = BY_OPERATOR
        return "nothing is swapped until `recald hold --release`, over restarts too; what fails on a frame goes back"

    def _release(self, sensor: Sensor) -> str:
        sensor.operator_hold = ""
        return "swaps are allowed again"


def _candidate(sensor: Sensor) -> str:
    return "none" if sensor.waiting is None else sensor.waiting.prepared.version[:12]
