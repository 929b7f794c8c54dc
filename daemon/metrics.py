"""Every metric of the daemon: its name, its unit, its help text, and the port where it is scraped."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, Counter, Enum, Gauge, Histogram, start_http_server
from prometheus_client import Metric as Family
from prometheus_client.registry import Collector

from daemon.states import State

LATENCY_BUCKETS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.033, 0.05, 0.1, 0.2, 0.5, 1.0)
PAUSE_BUCKETS = (1e-6, 1e-5, 1e-4, 0.001, 0.005, 0.01, 0.033, 0.1)  # a swap exchanges one reference
FIT_BUCKETS = (0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
COMPILE_BUCKETS = (1.0, 5.0, 15.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1200.0)


class _Maker:
    """Makes metrics of one registry; the labels come last, in the order in which they are given later."""

    def __init__(self, registry: CollectorRegistry):
        self.registry = registry

    def counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"recald_{name}", text, labels, registry=self.registry)

    def gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"recald_{name}", text, labels, registry=self.registry)

    def histogram(self, name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
        return Histogram(f"recald_{name}", text, labels, registry=self.registry, buckets=buckets)

    def state(self, name: str, text: str, states: tuple[str, ...], *labels: str) -> Enum:
        return Enum(f"recald_{name}", text, labels, registry=self.registry, states=states)


class Metrics:
    """The metrics, each under its name without `recald_` and `_total`."""

    def __init__(self, registry: CollectorRegistry):
        make = _Maker(registry)
        self._what_runs(make)
        self._frames(make)
        self._durations(make)
        self._drift(make)
        self._jobs(make)
        self._homogenizers: dict[str, tuple[str, str, str]] = {}  # the label values now exported

    def _what_runs(self, make: _Maker) -> None:
        self.build_info = make.gauge("build_info", "Always 1; what is running.", "version", "torch", "backend")
        self.model_info = make.gauge("model_info", "Always 1; the frozen model served.", "digest", "backend")
        self.homogenizer_info = make.gauge(
            "homogenizer_info", "Always 1; the homogenizer serving a sensor.", "sensor", "version", "source"
        )

    def _frames(self, make: _Maker) -> None:
        self.frames_received = make.counter("frames_received_total", "Frame messages that arrived.", "sensor")
        self.frames_processed = make.counter("frames_processed_total", "Frames that led to a result.", "sensor")
        self.frames_dropped = make.counter(
            "frames_dropped_total", "Frames that arrived and led to no result.", "sensor", "reason"
        )
        self.frames_missed = make.counter(
            "frames_missed_total", "Sequence numbers skipped: frames lost before they arrived.", "sensor"
        )
        self.samples_rejected = make.counter(
            "samples_rejected_total", "Frames kept for no drift check and no fit.", "sensor", "reason"
        )
        self.input_disconnects = make.counter(
            "input_disconnects_total", "Connections of frame senders lost, also for an oversize message."
        )
        self.last_frame_timestamp_seconds = make.gauge(
            "last_frame_timestamp_seconds", "Acquisition time of the newest accepted frame.", "sensor"
        )

    def _durations(self, make: _Maker) -> None:
        self.frame_age_seconds = make.histogram(
            "frame_age_seconds", "From acquisition to the start of processing.", LATENCY_BUCKETS, "sensor"
        )
        self.stage_duration_seconds = make.histogram(
            "stage_duration_seconds", "Time spent in one stage.", LATENCY_BUCKETS, "sensor", "stage"
        )
        self.end_to_end_seconds = make.histogram(
            "end_to_end_seconds", "From acquisition to the published result.", LATENCY_BUCKETS, "sensor"
        )

    def _drift(self, make: _Maker) -> None:
        self.drift_score = make.gauge(
            "drift_score",
            "Distance of the frames' statistics from the reference; about 1 on clean data.",
            "sensor",
            "stage",
        )
        self.layer_drift_score = make.gauge("layer_drift_score", "Drift score of one layer.", "sensor", "layer")
        self.drift_alarm = make.gauge("drift_alarm", "1 while drift is alarmed.", "sensor")
        self.narrow_view = make.gauge("narrow_view", "1 while few classes are in view: no drift to fit to.", "sensor")
        self.drift_evidence = make.gauge("drift_evidence", "What the drift detector has summed up.", "sensor")
        self.accuracy_proxy_ratio = make.gauge(
            "accuracy_proxy_ratio", "Accuracy estimated without labels.", "sensor", "proxy"
        )

    def _jobs(self, make: _Maker) -> None:
        self.calibration_state = make.state(
            "calibration_state", "What recalibration is doing.", tuple(state.value for state in State), "sensor"
        )
        self.calibration_progress_ratio = make.gauge(
            "calibration_progress_ratio", "Share of the running recalibration that is done.", "sensor"
        )
        self.fits = make.counter("fits_total", "Fits by how they ended.", "sensor", "result")
        self.fit_duration_seconds = make.histogram("fit_duration_seconds", "Duration of a fit.", FIT_BUCKETS, "sensor")
        self.compile_duration_seconds = make.histogram(
            "compile_duration_seconds", "Duration of compiling a homogenizer.", COMPILE_BUCKETS, "sensor"
        )
        self.swaps = make.counter("swaps_total", "Swaps of the homogenizer by how they ended.", "sensor", "result")
        self.swap_pause_seconds = make.histogram(
            "swap_pause_seconds", "Time a swap kept frames waiting.", PAUSE_BUCKETS, "sensor"
        )
        self.rollbacks = make.counter("rollbacks_total", "Returns to the homogenizer before.", "sensor", "reason")

        self.audit_records = make.counter("audit_records_total", "Records written to the audit log.")
        self.audit_failures = make.counter("audit_failures_total", "Records that could not be written to it.")

    def set_model(self, digest: str, backend: str) -> None:
        """State what serves the frozen model; what served it before is no longer exported."""
        self.model_info.clear()
        self.model_info.labels(digest, backend).set(1)

    def set_homogenizer(self, sensor: str, version: str, source: str) -> None:
        """State what serves `sensor`; what served it before is no longer exported."""
        before = self._homogenizers.get(sensor)
        self._homogenizers[sensor] = (sensor, version, source)
        if before is not None:
            self.homogenizer_info.remove(*before)
        self.homogenizer_info.labels(sensor, version, source).set(1)


@dataclass(frozen=True)
class MetricsServer:
    """A running scrape endpoint."""

    port: int
    _server: WSGIServer
    _thread: threading.Thread

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _WithoutCreated:
    """A registry without its `_created` series, one for each counter, which nothing here reads.

    prometheus_client's own switch for them is global to the process.
    """

    def __init__(self, registry: Collector):
        self._registry = registry

    def collect(self) -> Iterable[Family]:
        for family in self._registry.collect():
            family.samples = [sample for sample in family.samples if not sample.name.endswith("_created")]
            yield family

    def restricted_registry(self, names: Iterable[str]) -> _WithoutCreated:
        assert isinstance(self._registry, CollectorRegistry)  # a scrape restricts once
        return _WithoutCreated(self._registry.restricted_registry(names))


def serve_metrics(host: str, port: int, registry: CollectorRegistry) -> MetricsServer:
    """Serve the registry for Prometheus; port 0 takes any free one, OSError where the port is taken."""
    try:
        server, thread = start_http_server(port, addr=host, registry=_WithoutCreated(registry))
    except OSError as error:
        raise OSError(error.errno, f"cannot serve metrics on {host}:{port}: {error.strerror}") from error
    return MetricsServer(server.server_port, server, thread)
