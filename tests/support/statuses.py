"""Answers to `recald status` as a daemon gives them, for tests that need no daemon."""

from __future__ import annotations

from typing import Any


def sensor_status(**changes: Any) -> dict[str, Any]:
    """The status of a sensor that is well, with changes."""
    status: dict[str, Any] = {
        "state": "factory",
        "progress": 0.0,
        "elapsed_s": None,
        "remaining_s": None,
        "reason": "",
        "homogenizer": "factory",
        "drift_score": 0.8,
        "raw_drift_score": 0.8,
        "drift_evidence": 0.0,
        "camera": {},
        "drifted": [],
        "baseline_ratio": 0.25,
        "estimated_accuracy": None,
        "drift_alarm": False,
        "drift_checks": "running",
        "frames": 100,
        "labelled": None,
        "collected": 0,
        "hold": False,
        "candidate": None,
        "last_fit": "none yet",
        "dropped": 0,
        "last_refusal": None,
    }
    assert not changes.keys() - status.keys()
    return status | changes


def daemon_status(sensors: dict[str, dict[str, Any]] | None = None, **changes: Any) -> dict[str, Any]:
    """The status of a daemon with these sensors, by default one that is well."""
    return {
        "version": "0.1.0",
        "model": "ab" * 32,
        "backend": "onnx",
        "compiling": None,
        "mode": "autonomous",
        "judged_by": "labels",
        "problem": "",
        "unknown_sensor": {"dropped": 0, "last_refusal": None},
        "sensors": {"front": sensor_status()} if sensors is None else sensors,
    } | changes


def refused(reason: str, text: str, seconds_ago: float = 0.5) -> dict[str, Any]:
    """The newest refusal of a sensor."""
    return {"reason": reason, "field": "", "text": text, "seconds_ago": seconds_ago}
