"""The answer to `recald status`: plain values, for the control socket and for the page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from daemon import UNKNOWN_SENSOR, __version__
from daemon.config import Config
from daemon.model.served_model import ServedModel
from daemon.recalibration.sensor import Sensor
from daemon.serving.refusals import Refusals


def answer_status(
    config: Config, model: ServedModel, sensors: Mapping[str, Sensor], refusals: Refusals, problem: str
) -> dict[str, Any]:
    """Return what `recald status --json` prints. Any thread may ask. problem: of the state directory, or ""."""
    return {
        "version": __version__,
        "model": model.digest,
        "backend": model.served_by,
        "compiling": model.backend.name if model.has_stand_in else None,
        "mode": config.recalibrate.mode,
        "judged_by": "labels" if model.is_classifier else "outputs",
        "problem": problem,
        "unknown_sensor": refusals.status(UNKNOWN_SENSOR),
        "sensors": {name: sensor.status() | refusals.status(name) for name, sensor in sensors.items()},
    }
