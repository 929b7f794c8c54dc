"""Metrics of what no event announces: what is in force, and what changes with time alone."""

from __future__ import annotations

from typing import Any

from prometheus_client import Counter, Gauge


class ConditionMetrics:
    """The part of `Metrics` that daemon/monitoring exports once a second, and at the start."""

    def add_conditions(self, common: dict[str, Any]) -> None:
        """Add what daemon/monitoring exports once a second, and at the start."""
        self.config_info = Gauge(
            "config_info",
            "Always 1. The labels name the SHA-256 of the configuration in force, and recalibrate.mode.",
            ("digest", "mode"),
            **common,
        )
        self.model_commissioned = Gauge(
            "model_commissioned",
            "1 where clean frames were measured with `recald commission`, else 0.",
            **common,
        )
        self.drift_threshold = Gauge(
            "drift_threshold", "drift.threshold in force: a drift score above it is evidence of a drift.", **common
        )
        self.drift_hold_seconds = Gauge(
            "drift_hold_seconds", "drift.hold in force: the evidence at which the alarm is raised.", **common
        )
        self.clock_timestamp_seconds = Gauge(
            "clock_timestamp_seconds",
            "The clock of this device, seconds since 1970 (UTC). Before 2020: it was never set.",
            **common,
        )
        self.state_directory_free_bytes = Gauge(
            "state_directory_free_bytes",
            "Free space of the disk with the state directory; NaN while it cannot be read.",
            **common,
        )
        self.state_directory_size_bytes = Gauge(
            "state_directory_size_bytes",
            "Size of the disk with the state directory; NaN while it cannot be read.",
            **common,
        )
        self.audit_writable = Gauge(
            "audit_writable",
            "1 while the audit log can be written, else 0: no new homogenizer serves then.",
            **common,
        )
        self.certificate_expiry_timestamp_seconds = Gauge(
            "certificate_expiry_timestamp_seconds",
            "End of the certificate of the metrics port, seconds since 1970 (UTC). NaN where it speaks plain HTTP.",
            **common,
        )
        self._add_workers(common)
        self._add_gpu(common)
        self._add_sensor_conditions(common)

    def _add_workers(self, common: dict[str, Any]) -> None:
        self.worker_starts = Counter(
            "worker_starts_total",
            "Processes that were started, by what they do. Each fit has one of its own; more than one for the checks "
            "means that it ended without being asked to.",
            ("worker",),
            **common,
        )
        self.worker_resident_bytes = Gauge(
            "worker_resident_bytes", "Resident memory of the process; 0 while none runs.", ("worker",), **common
        )
        self.worker_cpu_seconds = Counter(
            "worker_cpu_seconds_total",
            "Processor time, user and system, of all processes that a worker has had since the start of recald.",
            ("worker",),
            **common,
        )

    def _add_gpu(self, common: dict[str, Any]) -> None:
        self.gpu_utilization_ratio = Gauge(
            "gpu_utilization_ratio",
            "Share of the time in which the GPU computed, for whatever process. No series without a GPU that tells it.",
            ("gpu",),
            **common,
        )
        self.gpu_memory_used_bytes = Gauge(
            "gpu_memory_used_bytes",
            "Memory of the GPU that is taken, by all processes. No series on a Jetson: its GPU shares the memory.",
            ("gpu",),
            **common,
        )
        self.gpu_memory_total_bytes = Gauge(
            "gpu_memory_total_bytes",
            "Memory that the GPU has. No series on a Jetson: its GPU shares the memory of the device.",
            ("gpu",),
            **common,
        )
        self.gpu_temperature_celsius = Gauge(
            "gpu_temperature_celsius", "Temperature of the GPU's chip, in degrees Celsius.", ("gpu",), **common
        )
        self.gpu_throttled = Gauge(
            "gpu_throttled",
            "1 while the GPU runs slower than it could, by reason, else 0. No series where no driver tells it.",
            ("gpu", "reason"),
            **common,
        )

    def _add_sensor_conditions(self, common: dict[str, Any]) -> None:
        self.camera_silence_seconds = Gauge(
            "camera_silence_seconds",
            "Seconds without a frame; 0 while that is usual for this camera.",
            ("sensor",),
            **common,
        )
        self.drift_checks_overdue = Gauge(
            "drift_checks_overdue",
            "1 while no drift check ends although frames come, else 0: a drift would not be seen.",
            ("sensor",),
            **common,
        )
        self.calibration_state_age_seconds = Gauge(
            "calibration_state_age_seconds", "Seconds since the present state began.", ("sensor",), **common
        )
        self.homogenizer_age_seconds = Gauge(
            "homogenizer_age_seconds",
            "Seconds since what serves came to serve, before a restart, too.",
            ("sensor",),
            **common,
        )
        self.swaps_held = Gauge(
            "swaps_held",
            "1 while no new homogenizer may serve, by who holds it, else 0; the way back stays open.",
            ("sensor", "by"),
            **common,
        )
        self.calibration_waits = Gauge(
            "calibration_waits",
            "1 while a recalibration that is wanted does not go on, by what it waits for, else 0.",
            ("sensor", "reason"),
            **common,
        )
        self.budget_left = Gauge(
            "budget_left", "Fits and swaps that are left of the last 24 hours' budget.", ("sensor", "kind"), **common
        )
        self.last_fit_timestamp_seconds = Gauge(
            "last_fit_timestamp_seconds",
            "Time when the last recalibration since the start of recald ended, seconds since 1970 (UTC).",
            ("sensor",),
            **common,
        )
        self.last_fit_info = Gauge(
            "last_fit_info",
            "Always 1. The labels name how the last recalibration since the start of recald ended, and the homogenizer "
            "that came of it, if any.",
            ("sensor", "result", "version"),
            **common,
        )
        self.last_swap_timestamp_seconds = Gauge(
            "last_swap_timestamp_seconds",
            "Time of the last swap or rollback since the start of recald, seconds since 1970 (UTC).",
            ("sensor",),
            **common,
        )
        self._last_fits: dict[str, tuple[str, str, str]] = {}  # by sensor, the label values now exported

    def set_last_fit(self, sensor: str, result: str, version: str) -> None:
        """Export how the last recalibration of `sensor` ended, in place of the one before. version: "" for none."""
        before, newest = self._last_fits.get(sensor), (sensor, result, version)
        self._last_fits[sensor] = newest
        if before not in (None, newest):
            self.last_fit_info.remove(*before)
        self.last_fit_info.labels(*newest).set(1)
        self.last_fit_timestamp_seconds.labels(sensor).set_to_current_time()
