"""The row of the fleet: all devices of the chosen jobs at a glance."""

from __future__ import annotations

from typing import Any

from deploy.monitoring.dashboard.parts import (
    FLEET,
    GREEN,
    RED,
    YELLOW,
    About,
    bars,
    coloured,
    listing,
    newest,
    number,
    rows,
    series,
)

LOW = 6  # height of these panels, in units of Grafana's grid
FIRING = series("ALERTS", *FLEET, 'alertname=~"Recald.*"', 'alertstate="firing"')


def fleet() -> list[Any]:
    """Return the panels of the row."""
    return [_devices(), _alarms(), _by_state(), _worst_accuracy(), _alerts(), _last_recalibrations()]


def _devices() -> Any:
    text = "Devices that Prometheus reaches, and those that it does not."
    up = series("up", *FLEET)
    answering, silent = newest(f"sum({up})", "answer"), newest(f"count({up}) - sum({up})", "do not answer")
    return number(About("Devices", text, "none", 4, LOW), answering, silent)


def _alarms() -> Any:
    text = "Cameras with a drift alarm now, and cameras whose drift could not be repaired."
    alarm = newest(f"sum({series('recald_drift_alarm', *FLEET)} == 1) or vector(0)", "drift alarm")
    invalid = series("recald_calibration_state", *FLEET, 'state="invalid"')
    panel = number(About("Alarms", text, "none", 4, LOW), alarm, newest(f"sum({invalid})", "not repairable"))
    return coloured(panel, (None, GREEN), (1, RED))


def _by_state() -> Any:
    text = "How many cameras are in each state of recalibration. `factory` and `active` are at rest."
    states = f"sum by (state) ({series('recald_calibration_state', *FLEET)}) > 0"
    return bars(About("Cameras by state", text, "none", 8, LOW), newest(states, "{{state}}"))


def _worst_accuracy() -> Any:
    text = (
        "The ten cameras with the lowest estimated accuracy, without labels. Only after "
        "`recald commission --labels`; nothing while few classes are in view."
    )
    value = series("recald_estimated_accuracy_ratio", *FLEET, 'frames="homogenized"', 'bound="value"')
    worst = newest(f"bottomk(10, {value} >= 0)", "{{instance}} {{sensor}}")
    panel = bars(About("Worst estimated accuracy", text, "percentunit", 8, LOW), worst).min(0).max(1)
    return coloured(panel, (None, RED), (0.7, YELLOW), (0.85, GREEN))


def _alerts() -> Any:
    text = "Alerts of recald that fire now; each has a page in docs/runbooks. Needs the rules in recald.alerts.yaml."
    columns = {"alertname": "alert", "severity": "severity", "instance": "device", "sensor": "camera"}
    return listing(About("Alerts", text, "none", 10, LOW), rows(FIRING), columns=columns)


def _last_recalibrations() -> Any:
    text = "When the last recalibration of each camera ended and the last homogenizer came to serve, since its start."
    fit, swap = (series(f"recald_last_{event}_timestamp_seconds", *FLEET) for event in ("fit", "swap"))
    columns = {"instance": "device", "sensor": "camera", "Value #A": "last fit", "Value #B": "last swap"}
    about = About("Last recalibrations", text, "dateTimeFromNow", 14, LOW)
    return listing(about, rows(f"{fit} * 1000"), rows(f"{swap} * 1000"), columns=columns)
