"""Who keeps a new homogenizer from serving, and why. The way back, to the one before or to none, stays open."""

from __future__ import annotations

from daemon.recalibration.sensor import Sensor
from daemon.state.audit_writer import AuditWriter

HOLDERS = ("audit", "start", "operator", "camera")  # labels of recald_swaps_held; the first that holds is the reason


def holds(sensor: Sensor, audit_writer: AuditWriter) -> dict[str, str]:
    """Return the reason of each of HOLDERS that holds now, in their order."""
    problem, order = audit_writer.problem, sensor.operator_hold
    reasons = {
        "audit": problem and f"the audit log cannot be written: {problem}",
        "start": "the audit log is not yet read" if order is None else "",
        "operator": order and f"{order}; `recald hold --release` ends it",
        "camera": "the camera's side holds swaps" if sensor.hold else "",
    }
    return {holder: reason for holder, reason in reasons.items() if reason}


def hold_reason(sensor: Sensor, audit_writer: AuditWriter) -> str:
    """Return why no new homogenizer may serve now, or ""."""
    if not audit_writer.problem and audit_writer.pending:
        return "the audit log is being written"  # for some milliseconds: that is no hold to be shown
    return next(iter(holds(sensor, audit_writer).values()), "")
