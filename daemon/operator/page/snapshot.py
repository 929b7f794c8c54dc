"""What the frame thread shows of itself once a second: an object that nobody changes, for the threads of the port."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from daemon.operator.page.drift_history import DriftHistory, DriftPoint, reading
from deploy.audit.chain import AuditRecord

RATE_WINDOW = 6  # snapshots that frames a second are taken over
MAX_REFUSAL_AGE_S = 2.0  # a frame refused within the last second or so says something about now


@dataclass(frozen=True)
class Snapshot:
    """The daemon at one moment. status: the answer to `recald status`; no value of it changes any more.

    number: rises where anything has changed. at, now: monotonic and wall clock, s. began: of the first snapshot, on the
    clock of `at`. arrived: when the newest frame of a sensor came, on the same clock; None: none has. broken: sensors
    for which the model fails. decisions: the newest records of the audit log, the newest last.
    """

    number: int
    at: float
    now: float
    began: float
    status: Mapping[str, Any]
    points: Mapping[str, tuple[DriftPoint, ...]]
    rates: Mapping[str, float]
    arrived: Mapping[str, float | None]
    broken: frozenset[str]
    decisions: tuple[AuditRecord, ...]


class Snapshots:
    """Takes snapshots on the frame thread; `newest` may be read by any thread. It costs some microseconds a sensor."""

    def __init__(self, sensors: Iterable[str], threshold: float) -> None:
        """threshold: drift.threshold in force."""
        self.newest: Snapshot | None = None
        self._threshold = threshold
        self._histories = {name: DriftHistory() for name in sensors}
        self._frames: dict[str, deque[tuple[float, int]]] = {name: deque(maxlen=RATE_WINDOW) for name in sensors}
        self._broken: set[str] = set()

    def take(
        self,
        status: Mapping[str, Any],
        decisions: tuple[AuditRecord, ...],
        arrived: Mapping[str, float | None],
        now: float,
        date: float,
    ) -> None:
        """Take one. status: a new answer to `recald status`. now: monotonic, s. date: s since the epoch."""
        for name, sensor in status["sensors"].items():
            self._add_point(name, sensor, now)
            self._update_broken(name, sensor)
            self._frames[name].append((now, sensor["frames"]))
        before = self.newest
        unchanged = before is not None and before.status == status and before.decisions is decisions
        unchanged = unchanged and before is not None and before.arrived == arrived
        number, began = (0, now) if before is None else (before.number + (not unchanged), before.began)
        points = {name: history.points for name, history in self._histories.items()}
        rates = {name: _rate(counts) for name, counts in self._frames.items()}
        broken = frozenset(self._broken)
        self.newest = Snapshot(number, now, date, began, status, points, rates, arrived, broken, decisions)

    def _add_point(self, name: str, sensor: Mapping[str, Any], now: float) -> None:
        served, raw = (reading(sensor, stage, self._threshold) for stage in ("homogenized", "raw"))
        self._histories[name].add(served and served.ratio, raw and raw.ratio, bool(sensor["drift_alarm"]), now)

    def _update_broken(self, name: str, sensor: Mapping[str, Any]) -> None:
        """Note where the model failed on the newest frame and has answered none since."""
        counts, refusal = self._frames[name], sensor["last_refusal"]
        if not counts or sensor["frames"] > counts[-1][1]:
            self._broken.discard(name)
        elif refusal and refusal["reason"] == "inference" and refusal["seconds_ago"] < MAX_REFUSAL_AGE_S:
            self._broken.add(name)


def _rate(counts: deque[tuple[float, int]]) -> float:
    """Return the frames a second."""
    (began, first), (ended, last) = counts[0], counts[-1]
    return (last - first) / (ended - began) if ended > began else 0.0
