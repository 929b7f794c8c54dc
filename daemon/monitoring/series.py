"""The series that exist from the start, at 0: Prometheus does not see the increase that creates a series."""

from __future__ import annotations

from collections.abc import Iterable

from daemon import UNKNOWN_SENSOR
from daemon.metrics import Metrics
from daemon.recalibration.labelled import COUNTED_RESULTS
from daemon.states import Result

# By attribute of Metrics, all values of the label beside `sensor`; docs/labels.py says what each means.
CLOSED_VALUES: dict[str, tuple[str, ...]] = {
    "frames_dropped": (
        "superseded",
        "inference",
        "parts",
        "sensor",
        "header",
        "version",
        "encoding",
        "size",
        "slow",
        "stale",
        "future",
        "decode",
        "bits",
        "nonfinite",
    ),
    "samples_rejected": ("blank", "saturated", "frozen", "duplicate"),
    "stage_duration_seconds": ("decode", "preprocess", "infer", "publish"),
    "drift_checks": ("done", "outdated", "failed", "timeout"),
    "fits": (
        Result.ACCEPTED,
        Result.RECALLED,
        Result.FACTORY,
        Result.UNNEEDED,
        Result.REJECTED,
        Result.REFUSED,
        Result.OUTDATED,
        Result.FAILED,
        Result.TIMEOUT,
    ),
    "swaps": (
        "committed",
        Result.SHADOWED,
        Result.REJECTED,
        Result.REFUSED,
        Result.OUTDATED,
        Result.TIMEOUT,
        Result.STOPPED,
    ),
    "rollbacks": ("regress", "latency", "unproven", "error", "operator"),
    "labelled_frames": COUNTED_RESULTS,
}
# By attribute of Metrics, all values of the only label; docs/labels.py says what each means.
CLOSED_VALUES_OF_DEVICE: dict[str, tuple[str, ...]] = {
    "handled_faults": (
        "learning",
        "keeping",
        "read_outs",
        "page_frame",
        "comparison",
        "recall",
        "dossier",
        "state",
        "control",
        "gpu",
    ),
}
# Attributes of Metrics with the label `sensor` alone that count or measure events.
EVENTS_OF_SENSOR = (
    "frames_received",
    "frames_processed",
    "frames_missed",
    "sequence_jumps",
    "frame_age_seconds",
    "end_to_end_seconds",
    "fit_duration_seconds",
    "compile_duration_seconds",
    "swap_pause_seconds",
)
REASONS_WITHOUT_SENSOR = ("parts", "sensor")  # messages that name no configured sensor


def open_series(metrics: Metrics, sensors: Iterable[str]) -> None:
    """Make every series of these sensors exist whose label values are known before an event has them."""
    for sensor in sensors:
        for name in EVENTS_OF_SENSOR:
            getattr(metrics, name).labels(sensor)
        for name, values in CLOSED_VALUES.items():
            for value in values:
                getattr(metrics, name).labels(sensor, value)
    for name, values in CLOSED_VALUES_OF_DEVICE.items():
        for value in values:
            getattr(metrics, name).labels(value)
    metrics.frames_received.labels(UNKNOWN_SENSOR)
    for reason in REASONS_WITHOUT_SENSOR:
        metrics.frames_dropped.labels(UNKNOWN_SENSOR, reason)
