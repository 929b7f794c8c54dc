import re
import time
import urllib.request
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_open_metrics
from prometheus_client.parser import text_string_to_metric_families

from daemon.metrics import Metrics
from daemon.settings.metrics import MetricsConfig
from daemon.states import State
from daemon.web.server import MetricsServer
from daemon.web.site import HostNames, Site

OPEN_METRICS = "application/openmetrics-text; version=1.0.0"
LABELS = {  # every metric of the daemon, which later code must feed and dashboards may ask for
    "build_info": ("version", "torch", "backend"),
    "model_info": ("digest", "backend"),
    "thread_faults_total": ("thread",),
    "homogenizer_info": ("sensor", "version", "source"),
    "frames_received_total": ("sensor",),
    "frames_processed_total": ("sensor",),
    "frames_dropped_total": ("sensor", "reason"),
    "frames_missed_total": ("sensor",),
    "sequence_jumps_total": ("sensor",),
    "last_refusal_info": ("sensor", "reason", "field"),
    "last_fit_info": ("sensor", "result", "version"),
    "samples_rejected_total": ("sensor", "reason"),
    "reservoir_bytes": ("sensor",),
    "input_disconnects_total": (),
    "result_overruns_total": (),
    "last_frame_timestamp_seconds": ("sensor",),
    "frame_age_seconds": ("sensor",),
    "stage_duration_seconds": ("sensor", "stage"),
    "end_to_end_seconds": ("sensor",),
    "drift_score": ("sensor", "frames"),
    "layer_drift_score": ("sensor", "layer"),
    "drift_alarm": ("sensor",),
    "drift_evidence_ratio": ("sensor",),
    "sensor_drift_deviations": ("sensor", "frames"),
    "content_shift_score": ("sensor", "frames"),
    "baseline_progress_ratio": ("sensor",),
    "camera_read_out": ("sensor", "kind", "colour"),
    "narrow_view": ("sensor",),
    "drift_checks_total": ("sensor", "result"),
    "last_drift_check_timestamp_seconds": ("sensor",),
    "accuracy_proxy_ratio": ("sensor", "proxy"),
    "estimated_accuracy_ratio": ("sensor", "frames", "bound"),
    "calibration_state": ("sensor", "state"),
    "calibration_progress_ratio": ("sensor",),
    "fits_total": ("sensor", "result"),
    "fit_duration_seconds": ("sensor",),
    "compile_duration_seconds": ("sensor",),
    "swaps_total": ("sensor", "result"),
    "swap_pause_seconds": ("sensor",),
    "rollbacks_total": ("sensor", "reason"),
    "audit_records_total": (),
    "labelled_frames_total": ("sensor", "result"),
    "labelled_accuracy_ratio": ("sensor", "bound"),
    "audit_failures_total": (),
    "config_info": ("digest", "mode"),
    "model_commissioned": (),
    "drift_threshold": (),
    "drift_hold_seconds": (),
    "clock_timestamp_seconds": (),
    "state_directory_free_bytes": (),
    "state_directory_size_bytes": (),
    "audit_writable": (),
    "certificate_expiry_timestamp_seconds": (),
    "worker_starts_total": ("worker",),
    "worker_resident_bytes": ("worker",),
    "worker_cpu_seconds_total": ("worker",),
    "gpu_utilization_ratio": ("gpu",),
    "gpu_memory_used_bytes": ("gpu",),
    "gpu_memory_total_bytes": ("gpu",),
    "gpu_temperature_celsius": ("gpu",),
    "gpu_throttled": ("gpu", "reason"),
    "swaps_held": ("sensor", "by"),
    "calibration_waits": ("sensor", "reason"),
    "handled_faults_total": ("part",),
    "predicted_frames_total": ("sensor", "label"),
    "camera_silence_seconds": ("sensor",),
    "drift_checks_overdue": ("sensor",),
    "calibration_state_age_seconds": ("sensor",),
    "homogenizer_age_seconds": ("sensor",),
    "budget_left": ("sensor", "kind"),
    "last_fit_timestamp_seconds": ("sensor",),
    "last_swap_timestamp_seconds": ("sensor",),
}


@pytest.fixture
def registry():
    return CollectorRegistry()


@pytest.fixture
def metrics(registry):
    return Metrics(registry)


@pytest.fixture
def server(registry, metrics):
    server = MetricsServer("127.0.0.1", 0, Site(registry, {}, HostNames(MetricsConfig())))
    yield server
    server.close()


def scrape(port: int, query: str = "", accept: str = "text/plain") -> str:
    request = urllib.request.Request(f"http://127.0.0.1:{port}/metrics{query}", headers={"Accept": accept})
    with urllib.request.urlopen(request) as answer:
        assert answer.headers["Content-Type"].startswith(accept)
        return answer.read().decode()


def scrape_open_metrics(port: int) -> dict[str, Any]:
    """The families by name, in the format that Prometheus asks for."""
    request = urllib.request.Request(f"http://127.0.0.1:{port}/metrics", headers={"Accept": OPEN_METRICS})
    with urllib.request.urlopen(request) as answer:
        return {family.name: family for family in parse_open_metrics(answer.read().decode())}


def touch(metrics: Metrics) -> None:
    """Make every metric show at least one series."""
    for name, labels in LABELS.items():
        metric = getattr(metrics, name.removesuffix("_total"))
        if labels:
            metric.labels(**dict.fromkeys(labels, "x"))


def test_names_and_labels_are_the_agreed_ones(metrics, registry):
    touch(metrics)
    for family in registry.collect():
        name = family.name.removeprefix("recald_") + ("_total" if family.type == "counter" else "")
        labels = {key for sample in family.samples for key in sample.labels} - {"le", family.name}
        assert labels == set(LABELS[name])
        assert family.documentation.endswith(".")
    assert len(list(registry.collect())) == len(LABELS)


def test_counters_count_under_their_names(metrics, registry):
    metrics.frames_dropped.labels("front", "stale").inc()
    assert registry.get_sample_value("recald_frames_dropped_total", {"sensor": "front", "reason": "stale"}) == 1


def test_a_fit_is_counted_with_its_time(metrics, registry):
    began = time.time()
    metrics.count_fit("front", "rejected")
    assert registry.get_sample_value("recald_fits_total", {"sensor": "front", "result": "rejected"}) == 1
    assert began <= registry.get_sample_value("recald_last_fit_timestamp_seconds", {"sensor": "front"}) <= time.time()


def test_the_last_fit_is_exported_with_its_homogenizer(metrics, registry):
    for sensor, result, version in (("front", "accepted", "ab12"), ("rear", "failed", ""), ("front", "rejected", "")):
        metrics.count_fit(sensor, result, version)
    samples = next(f for f in registry.collect() if f.name == "recald_last_fit_info").samples
    assert {tuple(s.labels.values()): s.value for s in samples} == {
        ("front", "rejected", ""): 1,
        ("rear", "failed", ""): 1,
    }


def test_a_fit_is_an_exemplar_that_names_its_homogenizer(metrics, server):
    metrics.count_fit("front", "accepted", "ab" * 32)
    metrics.count_fit("front", "failed")
    samples = scrape_open_metrics(server.port)["recald_fits"].samples
    named = {sample.labels["result"]: sample.exemplar for sample in samples}
    assert named["accepted"].labels == {"version": "ab" * 32} and named["failed"] is None


def test_the_unit_of_a_metric_is_told_where_its_name_has_one(metrics, server):
    touch(metrics)
    families = scrape_open_metrics(server.port)
    units = {"end_to_end_seconds": "seconds", "reservoir_bytes": "bytes", "drift_evidence_ratio": "ratio", "fits": ""}
    assert {name: families[f"recald_{name}"].unit for name in units} == units


def test_calibration_state_is_one_of_all(metrics, registry):
    states = [state.value for state in State]
    for state in (State.FACTORY, State.JUDGING, State.JUDGING):
        metrics.set_calibration_state("front", state)
    values = {
        state: registry.get_sample_value("recald_calibration_state", {"sensor": "front", "state": state})
        for state in states
    }
    assert values == dict.fromkeys(states, 0) | {"judging": 1}


def test_only_the_serving_homogenizer_is_exported(metrics, registry):
    metrics.set_homogenizer("front", "factory", "factory")
    metrics.set_homogenizer("rear", "factory", "factory")
    metrics.set_homogenizer("front", "ab12", "fit")
    metrics.set_homogenizer("front", "ab12", "fit")
    (family,) = (f for f in registry.collect() if f.name == "recald_homogenizer_info")
    shown = {tuple(sample.labels.values()): sample.value for sample in family.samples}
    assert shown == {("rear", "factory", "factory"): 1, ("front", "ab12", "fit"): 1}


def test_what_is_served_parses_and_has_no_created_series(metrics, server, registry):
    touch(metrics)
    assert "_created" in generate_latest(registry).decode()  # so the absence below means something
    text = scrape(server.port)
    assert "_created" not in text
    assert len(list(text_string_to_metric_families(text))) == len(LABELS)


def test_what_is_served_as_openmetrics_parses_and_is_the_same(metrics, server):
    """Prometheus asks for this format first."""
    touch(metrics)
    metrics.end_to_end_seconds.labels("front").observe(0.004)
    text = scrape(server.port, accept="application/openmetrics-text")
    assert text.endswith("# EOF\n")
    found = {family.name: family for family in parse_open_metrics(text)}
    plain = {family.name for family in text_string_to_metric_families(scrape(server.port))}
    assert len(found) == len(LABELS) and found.keys() == plain


def test_one_metric_can_be_scraped_alone(metrics, server):
    touch(metrics)
    text = scrape(server.port, "?name[]=recald_fits_total")
    assert re.findall(r"^recald_\w+", text, re.MULTILINE) == ["recald_fits_total"]


def test_the_newest_refusal_replaces_the_one_before(metrics, registry):
    def exported() -> list[tuple[str, str, str]]:
        samples = next(f for f in registry.collect() if f.name == "recald_last_refusal_info").samples
        return sorted((s.labels["sensor"], s.labels["reason"], s.labels["field"]) for s in samples)

    for refusal in [("front", "stale", "timestamp"), ("rear", "decode", ""), ("front", "header", "seq")]:
        metrics.set_last_refusal(*refusal)
        metrics.set_last_refusal(*refusal)
    assert exported() == [("front", "header", "seq"), ("rear", "decode", "")]
