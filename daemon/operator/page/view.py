"""What the page is given: a snapshot as JSON, with all words made here, so that the page only places them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Any, NamedTuple

from daemon.operator.page.drift_history import POINT_S, DriftPoint, number_at, reading
from daemon.operator.page.snapshot import Snapshot
from daemon.operator.page.words import HIDDEN_ON_PAGE, STATE_SENTENCES, Standing, decision, headline, standing
from daemon.operator.status import notes, refusal, state_text, work_notes
from daemon.operator.versions import short_version
from daemon.recalibration.page_frame import PageFrame
from daemon.recalibration.sensor import camera_text
from daemon.recalibration.state_machine import ON_PROBATION
from daemon.states import State
from deploy.store.artefacts import FACTORY

DOCUMENT_VERSION = 1
MAX_DECISIONS = 40  # on the page; `recald history` has all
QUANTITIES = {"camera": "standard deviations", "score": "drift score"}


class PageView(NamedTuple):
    """What all answers have in common. threshold: drift.threshold. start: another text after each start of recald."""

    threshold: float
    start: str

    def document(
        self, snapshot: Snapshot, now: float, silence: str, after: int, shown: Mapping[str, PageFrame]
    ) -> bytes:
        """Return /status.json. now: monotonic, s. silence: why the loop counts as dead, or "". after: see `_sensor`.

        shown: by sensor, its newest frame, where people may see it. Each sensor is encoded by itself: the encoder lets
        no other thread run, and 16 sensors with an hour each would keep a frame waiting for 10 ms.
        """
        sensors = snapshot.status["sensors"]
        standings = {name: standing(sensor, name in snapshot.broken) for name, sensor in sensors.items()}
        parts = [
            _json(
                _sensor(name, snapshot, stands, self.threshold, after)
                | {"frame": _frame(shown.get(name)), "frame_age_s": _age(snapshot.arrived[name], now)}
            )
            for name, stands in standings.items()
        ]
        head = _json(self._head(snapshot, headline(standings, snapshot.status["problem"], silence)))
        return f'{head[:-1]},"sensors":[{",".join(parts)}]}}'.encode()

    def _head(self, snapshot: Snapshot, first_line: Standing) -> dict[str, Any]:
        return {
            "v": DOCUMENT_VERSION,
            "start": self.start,
            "headline": first_line._asdict(),
            "at": _date(snapshot.now),
            "began": _date(snapshot.now - (snapshot.at - snapshot.began)),  # a clock set since then has set this, too
            "began_point": number_at(snapshot.began),
            "recald": _recald(snapshot.status),
            "point_s": POINT_S,
            "newest": number_at(snapshot.at),
            "decisions": _decisions(snapshot),
        }


def _date(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat(timespec="seconds")


def _age(arrived: float | None, now: float) -> float | None:
    return None if arrived is None else round(max(0.0, now - arrived), 1)


def _json(content: dict[str, Any]) -> str:
    return json.dumps(content, ensure_ascii=False, separators=(",", ":"))


def _decisions(snapshot: Snapshot) -> list[dict[str, str]]:
    """Return the newest decisions, the newest first."""
    shown = [record for record in reversed(snapshot.decisions) if record.event not in HIDDEN_ON_PAGE]
    return [decision(record) for record in shown[:MAX_DECISIONS]]


def _recald(status: Mapping[str, Any]) -> dict[str, Any]:
    strangers = status["unknown_sensor"]
    told = f"{strangers['dropped']} frames of no sensor: {refusal(strangers)}" if strangers["dropped"] else ""
    return {
        "version": status["version"],
        "model": short_version(status["model"]),
        "backend": status["backend"],
        "mode": status["mode"],
        "compiling": status["compiling"],
        "strangers": told,
    }


def _sensor(name: str, snapshot: Snapshot, stands: Standing, threshold: float, after: int) -> dict[str, Any]:
    """Return what is shown of one sensor. after: number of the newest point that the client has; older are left out."""
    sensor = snapshot.status["sensors"][name]
    reasons, serves = [_reason(sensor), *work_notes(sensor)], sensor["homogenizer"]
    return {
        "id": name,
        "tone": stands.tone,
        "standing": stands.text,
        "state": state_text(sensor).replace("_", " "),
        "sentence": STATE_SENTENCES[State(sensor["state"])],
        "progress": sensor["progress"],
        "reason": "; ".join(filter(None, reasons)),
        "drifted": sensor["drifted"],
        "notes": [note for note in notes(sensor) if note not in (sensor["reason"], *reasons)],
        "silent": sensor["drift_checks"] == "stopped",
        "alarm": sensor["drift_alarm"],
        "evidence": sensor["drift_evidence"],
        "drift": _drift(sensor, threshold),
        "accuracy": sensor["estimated_accuracy"],
        "rate": round(snapshot.rates[name], 1),
        "frames": sensor["frames"],
        "dropped": sensor["dropped"],
        "homogenizer": "none" if serves == FACTORY else short_version(serves),
        "points": [_point(point) for point in snapshot.points[name] if point.number > after],
    }


def _reason(sensor: Mapping[str, Any]) -> str:
    """Return the reason without what the page says beside it: what happened to the camera, and the probation."""
    listed = camera_text(sensor["drifted"])
    reason = str(sensor["reason"]).removesuffix(listed).removesuffix("; ") if listed else str(sensor["reason"])
    return "" if reason == ON_PROBATION else reason


def _drift(sensor: Mapping[str, Any], threshold: float) -> dict[str, Any] | None:
    found = reading(sensor, "homogenized", threshold)
    return found and {"value": round(found.value, 2), "line": found.line, "quantity": QUANTITIES[found.what]}


def _frame(shown: PageFrame | None) -> dict[str, Any] | None:
    return shown and {"mark": shown.mark, "restored": shown.restored is not None}


def _point(point: DriftPoint) -> list[Any]:
    return [point.number, point.served, point.raw, int(point.alarm)]
