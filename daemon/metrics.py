"""Every metric of the daemon: its name, its labels, its help text."""

from __future__ import annotations

import threading
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from daemon.condition_metrics import ConditionMetrics
from daemon.states import State

# Upper bounds of the histograms, s.
LATENCY_BUCKETS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.033, 0.05, 0.1, 0.2, 0.5, 1.0)
PAUSE_BUCKETS = (1e-6, 1e-5, 1e-4, 0.001, 0.005, 0.01, 0.033, 0.1)  # a swap exchanges one reference
FIT_BUCKETS = (0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
COMPILE_BUCKETS = (1.0, 5.0, 15.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1200.0)


class Metrics(ConditionMetrics):
    """The metrics of one registry, each an attribute named without `recald_` and `_total`."""

    def __init__(self, registry: CollectorRegistry):
        common: dict[str, Any] = {"namespace": "recald", "registry": registry}
        self._add_identities(common)
        self._add_frames(common)
        self._add_predicted(common)
        self._add_durations(common)
        self._add_drift(common)
        self._add_camera(common)
        self._add_accuracy(common)
        self._add_recalibration(common)
        self._add_labelled(common)
        self.add_conditions(common)
        self._refusals: dict[str, tuple[str, str, str]] = {}  # by sensor, the label values now exported
        self._refusals_lock = threading.Lock()
        self._homogenizers: dict[str, tuple[str, str, str]] = {}  # by sensor, the label values now exported

    def _add_identities(self, common: dict[str, Any]) -> None:
        self.build_info = Gauge(
            "build_info",
            "Always 1. The labels name the versions of recald and PyTorch, and the backend that was asked for.",
            ("version", "torch", "backend"),
            **common,
        )
        self.model_info = Gauge(
            "model_info",
            "Always 1. The labels name the SHA-256 of the frozen model and the backend that serves it now.",
            ("digest", "backend"),
            **common,
        )
        self.thread_faults = Counter(
            "thread_faults_total",
            "Unexpected exceptions in a thread, by thread. One that ends a thread ends the daemon with exit code 70.",
            ("thread",),
            **common,
        )
        self.handled_faults = Counter(
            "handled_faults_total",
            "Faults that recald handled and went on, by the part that did without: each kind is in the log. What other "
            "counters tell is not in here.",
            ("part",),
            **common,
        )
        self.homogenizer_info = Gauge(
            "homogenizer_info",
            "Always 1. The labels name the homogenizer that serves a sensor, and how it came to serve.",
            ("sensor", "version", "source"),
            **common,
        )

    def _add_frames(self, common: dict[str, Any]) -> None:
        self.frames_received = Counter(
            "frames_received_total", "Frame messages that arrived, refused ones included.", ("sensor",), **common
        )
        self.frames_processed = Counter(
            "frames_processed_total", "Frames that were answered with a result.", ("sensor",), **common
        )
        self.frames_dropped = Counter(
            "frames_dropped_total",
            "Frames that arrived and were not answered, by reason.",
            ("sensor", "reason"),
            **common,
        )
        self.frames_missed = Counter(
            "frames_missed_total",
            "Gaps in the sequence numbers: frames that were lost before they arrived.",
            ("sensor",),
            **common,
        )
        self.sequence_jumps = Counter(
            "sequence_jumps_total",
            "Sequence numbers that do not follow the one before: a camera that started again, time stamps as numbers, "
            "or two senders with one id. They count no missed frames.",
            ("sensor",),
            **common,
        )
        self.last_refusal_info = Gauge(
            "last_refusal_info",
            "Always 1. The labels name why the newest refused frame of a sensor was refused, and the header's field.",
            ("sensor", "reason", "field"),
            **common,
        )
        self.samples_rejected = Counter(
            "samples_rejected_total",
            "Frames that were answered and kept for no fit, by reason. Many of one reason: look at the camera.",
            ("sensor", "reason"),
            **common,
        )
        self.reservoir_bytes = Gauge(
            "reservoir_bytes",
            "Memory of the frames that are kept for drift checks and fits. It grows to that of recalibrate.frames + "
            "drift.window frames of the model's input size.",
            ("sensor",),
            **common,
        )
        self.input_disconnects = Counter(
            "input_disconnects_total",
            "Connections of frame senders that were lost. A message above input.max_frame_bytes ends one, too.",
            **common,
        )
        self.result_overruns = Counter(
            "result_overruns_total", "How often a reader fell 64 results behind and lost some; no other did.", **common
        )
        self.last_frame_timestamp_seconds = Gauge(
            "last_frame_timestamp_seconds",
            "Acquisition time of the newest accepted frame, seconds since 1970 (UTC). Old: the camera has stopped.",
            ("sensor",),
            **common,
        )

    def _add_predicted(self, common: dict[str, Any]) -> None:
        self.predicted_frames = Counter(
            "predicted_frames_total",
            "Frames by the class that the model named, as served. At most 64 labels of a sensor: the rest is `other`. "
            "No series for a network that is no classifier.",
            ("sensor", "label"),
            **common,
        )

    def _add_durations(self, common: dict[str, Any]) -> None:
        self.frame_age_seconds = Histogram(
            "frame_age_seconds",
            "Seconds from acquisition to the start of processing. High: frames wait, or the clocks differ.",
            ("sensor",),
            buckets=LATENCY_BUCKETS,
            **common,
        )
        self.stage_duration_seconds = Histogram(
            "stage_duration_seconds",
            "Seconds that a frame spent in one stage.",
            ("sensor", "stage"),
            buckets=LATENCY_BUCKETS,
            **common,
        )
        self.end_to_end_seconds = Histogram(
            "end_to_end_seconds",
            "Seconds from acquisition to the published result.",
            ("sensor",),
            buckets=LATENCY_BUCKETS,
            **common,
        )

    def _add_drift(self, common: dict[str, Any]) -> None:
        self.drift_score = Gauge(
            "drift_score",
            "Distance of the newest frames from the reference statistics, in standard errors. About 1: clean. "
            "Above drift.threshold for drift.hold: alarm, while there is no baseline.",
            ("sensor", "frames"),
            **common,
        )
        self.layer_drift_score = Gauge(
            "layer_drift_score",
            "Drift score of one layer, of frames as the model gets them. High in all layers: the camera has drifted. "
            "High in the last ones alone: few classes are in view.",
            ("sensor", "layer"),
            **common,
        )
        self.drift_alarm = Gauge(
            "drift_alarm",
            "1 while the drift alarm is raised, else 0; NaN while drift checks fail.",
            ("sensor",),
            **common,
        )
        self.narrow_view = Gauge(
            "narrow_view",
            "1 during a label shift: few classes are in view, the model is sure of them, and nothing is fitted.",
            ("sensor",),
            **common,
        )
        self.drift_evidence_ratio = Gauge(
            "drift_evidence_ratio",
            "Evidence of a drift, as a share of what raises the alarm. It falls while frames are healthy. At 1: alarm.",
            ("sensor",),
            **common,
        )
        self.drift_checks = Counter(
            "drift_checks_total",
            "Drift checks that ended, by result. While none ends well there is no score and no alarm: see the log.",
            ("sensor", "result"),
            **common,
        )
        self.last_drift_check_timestamp_seconds = Gauge(
            "last_drift_check_timestamp_seconds",
            "Time of the last drift check that ended well, seconds since 1970 (UTC). Old while frames come: they fail.",
            ("sensor",),
            **common,
        )

    def _add_camera(self, common: dict[str, Any]) -> None:
        self.sensor_drift_deviations = Gauge(
            "sensor_drift_deviations",
            "Standard deviations by which the newest frames lie above healthy frames of like content: what happened to "
            "the camera. About 0: healthy; evidence of a drift from 2.75 on. NaN while there is no baseline.",
            ("sensor", "frames"),
            **common,
        )
        self.content_shift_score = Gauge(
            "content_shift_score",
            "How unusual the content of the newest frames is: what the camera looks at. Above 1: more than 199 of 200 "
            "healthy windows of all kinds of content. NaN while there is no baseline.",
            ("sensor", "frames"),
            **common,
        )
        self.camera_read_out = Gauge(
            "camera_read_out",
            "What happened to the camera since it was healthy, in the unit of its kind (stops, pixels, grey levels, "
            "fraction or factor). NaN where nothing is beyond the natural variation, and without a drift alarm.",
            ("sensor", "kind", "colour"),
            **common,
        )
        self.baseline_progress_ratio = Gauge(
            "baseline_progress_ratio",
            "How far the baseline of healthy frames is learned. Below 1 the drift score and drift.hold decide.",
            ("sensor",),
            **common,
        )

    def _add_accuracy(self, common: dict[str, Any]) -> None:
        self.accuracy_proxy_ratio = Gauge(
            "accuracy_proxy_ratio",
            "Accuracy estimated from the network's outputs, 0 to 1. Too high under drift: compare it with its past.",
            ("sensor", "proxy"),
            **common,
        )
        self.estimated_accuracy_ratio = Gauge(
            "estimated_accuracy_ratio",
            "Accuracy estimated without labels, 0 to 1, and the interval that holds it in 90 % of cases. Only after "
            "`recald commission --labels`; NaN while few classes are in view.",
            ("sensor", "frames", "bound"),
            **common,
        )

    def _add_recalibration(self, common: dict[str, Any]) -> None:
        self._states: dict[str, State] = {}  # that are exported
        self.calibration_state = Gauge(
            "calibration_state",
            "State of a sensor's recalibration: 1 for the present one, 0 for all others.",
            ("sensor", "state"),
            **common,
        )
        self.calibration_progress_ratio = Gauge(
            "calibration_progress_ratio", "Share of the present state that is done, 0 to 1.", ("sensor",), **common
        )
        self.fits = Counter("fits_total", "Recalibrations that ended, by result.", ("sensor", "result"), **common)
        self.fit_duration_seconds = Histogram(
            "fit_duration_seconds", "Seconds that a fit took.", ("sensor",), buckets=FIT_BUCKETS, **common
        )
        self.compile_duration_seconds = Histogram(
            "compile_duration_seconds",
            "Seconds that it took to compile, check and store a candidate.",
            ("sensor",),
            buckets=COMPILE_BUCKETS,
            **common,
        )
        self.swaps = Counter(
            "swaps_total", "Candidates by what became of them; committed: it serves.", ("sensor", "result"), **common
        )
        self.swap_pause_seconds = Histogram(
            "swap_pause_seconds",
            "Seconds that the exchange of a homogenizer took, between two frames.",
            ("sensor",),
            buckets=PAUSE_BUCKETS,
            **common,
        )
        self.rollbacks = Counter(
            "rollbacks_total", "Returns to the homogenizer before, by reason.", ("sensor", "reason"), **common
        )
        self.audit_records = Counter("audit_records_total", "Records written to the audit log.", **common)
        self.audit_failures = Counter(
            "audit_failures_total",
            "Failed tries to write the audit log. While it cannot be written, no new homogenizer serves.",
            **common,
        )

    def _add_labelled(self, common: dict[str, Any]) -> None:
        self.labelled_frames = Counter(
            "labelled_frames_total",
            "Frames whose true class a user told (`recald label`), by what came of it.",
            ("sensor", "result"),
            **common,
        )
        self.labelled_accuracy_ratio = Gauge(
            "labelled_accuracy_ratio",
            "Share of labelled frames that the model was right about, behind the homogenizer that serves now, with its "
            "95 % interval; NaN until the first label after a start or a swap.",
            ("sensor", "bound"),
            **common,
        )

    def set_calibration_state(self, sensor: str, state: State) -> None:
        """Export the present state of a sensor's recalibration, and that it is in no other one."""
        if self._states.get(sensor) is state:
            return  # so it is for most frames
        self._states[sensor] = state
        for other in State:
            self.calibration_state.labels(sensor, other.value).set(other is state)

    def count_fault(self, part: str) -> None:
        """Count a fault that was handled. part: a label of recald_handled_faults_total. Any thread may call it."""
        self.handled_faults.labels(part).inc()

    def count_fit(self, sensor: str, result: str, version: str = "") -> None:
        """Count a recalibration that has ended. result: a label of recald_fits_total. version: its homogenizer."""
        self.fits.labels(sensor, result).inc(exemplar={"version": version} if version else None)
        self.set_last_fit(sensor, result, version)

    def set_model(self, digest: str, backend: str) -> None:
        """Export what serves the frozen model now, in place of what served it before."""
        self.model_info.clear()
        self.model_info.labels(digest, backend).set(1)

    def set_last_refusal(self, sensor: str, reason: str, field: str) -> None:
        """Export the newest refusal of a sensor, in place of the one before. Any thread may call it."""
        with self._refusals_lock:
            before, newest = self._refusals.get(sensor), (sensor, reason, field)
            self._refusals[sensor] = newest
            if before not in (None, newest):
                self.last_refusal_info.remove(*before)
            self.last_refusal_info.labels(*newest).set(1)

    def set_homogenizer(self, sensor: str, version: str, source: str) -> None:
        """Export what serves `sensor` now, in place of what served it before."""
        before = self._homogenizers.get(sensor)
        self._homogenizers[sensor] = (sensor, version, source)
        if before is not None:
            self.homogenizer_info.remove(*before)
        self.homogenizer_info.labels(sensor, version, source).set(1)
