"""A real Prometheus scrapes a real daemon under a drift: every query of dashboard and rules has an answer."""

from __future__ import annotations

import os
import re
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families
from prometheus_tools import RULES, run_tool, tool
from running import Camera, Daemon, copied_model, serving, write_config
from synthetic import drifted, images, labelled

import daemon.operator.commissioning.learn_accuracy
from bench.dashboard.panels import (
    PanelQuery,
    ShownPanel,
    load_dashboard,
    marks,
    named,
    shown_panels,
    substituted,
)
from bench.dashboard.prometheus import INSTANCE, Curve, Prometheus, QueryError
from daemon.demo.processes import free_port
from daemon.operator.commissioning.commission import commission

CLEAN, OTHER = images(256, 1), images(256, 2)
DARK = drifted(CLEAN, light=0.65)
LABELLED_FRAMES = 512  # with fewer there is no baseline
WINDOW_S = 5  # of rates: $__rate_interval of a scrape each second
SCRAPES_AFTER_REPAIR = 3
WINDOW = {"window": 64}  # frames: an accuracy estimate needs so many
BUSY_S = 130.0  # for what takes a few seconds: workers step back behind whatever else a machine does
NOT_FROM_RECALD = {"up", "ALERTS"}  # Prometheus' own

# In the place of nvidia-ml-py, on a machine with or without a GPU: a hot one.
DRIVER = """
from types import SimpleNamespace

NVML_TEMPERATURE_GPU = 0

class NVMLError(Exception): pass
class NVMLError_NotSupported(NVMLError): pass
class NVMLError_NoPermission(NVMLError): pass
class NVMLError_FunctionNotFound(NVMLError): pass

def nvmlInit(): pass
def nvmlShutdown(): pass
def nvmlDeviceGetCount(): return 1
def nvmlDeviceGetHandleByIndex(number): return number
def nvmlDeviceGetUtilizationRates(handle): return SimpleNamespace(gpu=40)
def nvmlDeviceGetMemoryInfo(handle): return SimpleNamespace(used=1 << 30, total=8 << 30)
def nvmlDeviceGetTemperature(handle, kind): return 91
def nvmlDeviceGetCurrentClocksEventReasons(handle): return 0x20
"""

# What need not have an answer in this story, and why.
WITHOUT_DATA = {
    "State: few classes in view": "all classes are in view",
    "Recalibrations in one hour: rollback {{reason}}": "nothing is rolled back",
    "Estimated accuracy: labelled": "nobody sends labels",
    "Waits and holds: waits: {{reason}}": "nothing that is wanted waits",
    "Waits and holds: held by {{by}}": "nobody holds a sensor",
    "RecaldWorkerRestarts": "the worker of the checks lives",
    "RecaldDown": "it answers",
    "RecaldCameraSilent": "the cameras go on",
    "RecaldNotRepairable": "the drift is repaired",
    "RecaldRecalibrationFailing": "no fit breaks",
    "RecaldApprovalWaits": "the mode is autonomous",
    "RecaldRolledBack": "nothing is rolled back",
    "RecaldLatencyRegression": "there is no day before",
    "RecaldDriftChecksDead": "they run",
    "RecaldAuditNotWritable": "it can be written",
    "RecaldDiskNearlyFull": "the disk has room",
    "RecaldClockNotSet": "it is the same clock",
    "Certificate: ends in": "the port speaks plain HTTP",
    "RecaldCertificateEnds": "the port speaks plain HTTP",
}


@dataclass(frozen=True)
class Watched:
    """A Prometheus that has seen a drift and its repair, and the last page that the daemon showed."""

    prometheus: Prometheus
    began: float
    ended: float
    page: str

    @property
    def variables(self) -> dict[str, str]:
        chosen = {"job": ".+", "instance": INSTANCE, "sensor": "front", "datasource": "prometheus"}
        return chosen | {"__rate_interval": f"{WINDOW_S}s"}

    def ask(self, expression: str) -> list[Curve]:
        curves = self.prometheus.ask(expression, self.began, self.ended)
        return [curve for curve in curves if not all(np.isnan(value) for _, value in curve.samples)]


def commissioned(tiny_model: Path, folder: Path) -> Path:
    """A model that estimates accuracy: learned from fewer drifts than a user's, which takes a second."""
    model, pictures = copied_model(tiny_model, folder), folder / "pictures.npz"
    frames, classes = labelled(LABELLED_FRAMES, 3)
    np.savez(pictures, images=frames, labels=classes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(daemon.operator.commissioning.learn_accuracy, "DRIFTS_OF_KIND", 1)
        patch.setattr(daemon.operator.commissioning.learn_accuracy, "MAX_FRAMES", 256)
        commission(model, pictures, LABELLED_FRAMES, labels=pictures)
    return model


def quick_rules(folder: Path) -> list[Path]:
    """The rules, but no alert waits, and rates look back seconds."""
    for path in sorted(RULES.glob("recald.*.yaml")):
        text = re.sub(r"for: \d+m", "for: 0s", path.read_text())
        (folder / path.name).write_text(text.replace("[5m]", f"[{WINDOW_S}s]"))
    return sorted(folder.glob("recald.*.yaml"))


@pytest.fixture(scope="module")
def watched(tiny_model: Path) -> Iterator[Watched]:
    program = tool("prometheus")
    with TemporaryDirectory(prefix="recald-", dir="/tmp") as name:
        folder, port = Path(name), free_port()
        config = write_config(folder, commissioned(tiny_model, folder), metrics={"port": port}, drift=WINDOW)
        server = Prometheus(program, folder, port, quick_rules(folder))
        (folder / "driver").mkdir()
        (folder / "driver" / "pynvml.py").write_text(DRIVER)
        path = f"{folder / 'driver'}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
        with serving(config, PYTHONPATH=path) as (recald, camera), server as prometheus:
            began = time.time()
            drift_and_repair(recald, camera)
            yield Watched(prometheus, began, time.time(), page(port))


def drift_and_repair(recald: Daemon, camera: Camera) -> None:
    clean, drift = {"front": CLEAN, "rear": OTHER}, {"front": DARK, "rear": OTHER}
    camera.stream(clean, lambda: recald.status()["drift_score"] is not None, "a first drift check", BUSY_S)
    camera.stream(clean, passed(WINDOW_S), "a clean start")
    camera.stream(drift, lambda: recald.status()["state"] == "active", "a homogenizer serves", BUSY_S)
    for _ in range(20):
        camera.send_parts([b"front/", b"{}", b""])  # refused: the header lacks all
    camera.stream(drift, passed(SCRAPES_AFTER_REPAIR), "scrapes after the repair")


def passed(seconds: float) -> Any:
    end = time.monotonic() + seconds
    return lambda: time.monotonic() >= end


def page(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        return answer.read().decode()


DASHBOARD = load_dashboard()
TITLES = {each["name"]: each["titleFormat"] for each in DASHBOARD["annotations"]["list"]}


def panels(variables: dict[str, str]) -> list[ShownPanel]:
    return [panel for panel in shown_panels(DASHBOARD, variables) if panel.kind != "row"]


def rules() -> list[dict[str, Any]]:
    files = [yaml.safe_load(path.read_text()) for path in RULES.glob("recald.*.yaml")]
    return [rule for file in files for group in file["groups"] for rule in group["rules"]]


def queries(watched: Watched) -> dict[str, str]:
    """Every expression of the dashboard and the rules, by a name for it."""
    found = {mark: expression for mark, (expression, _) in marks(DASHBOARD, watched.variables).items()}
    for panel in panels(watched.variables):
        found |= {name_of(panel, query): query.expression for query in panel.queries}
    return found | {rule.get("alert") or rule["record"]: rule["expr"] for rule in rules()}


def name_of(panel: ShownPanel, query: PanelQuery) -> str:
    return f"{panel.title}: {query.legend or query.letter}"


def test_every_query_is_valid_and_has_data_or_a_reason_to_have_none(watched):
    asked = queries(watched)
    empty = {name for name, expression in asked.items() if not watched.ask(expression)}
    assert empty <= set(WITHOUT_DATA) <= set(asked)


def test_what_is_no_query_is_refused(watched):
    with pytest.raises(QueryError, match=r"rate\(up\).*expected type range vector"):
        watched.ask("rate(up)")


def test_the_drift_fires_its_alert_and_the_repair_ends_it(watched):
    (alert,) = watched.ask('ALERTS{alertname="RecaldDriftAlarm", alertstate="firing"}')
    assert alert.labels["sensor"] == "front" and alert.labels["severity"] == "warning"
    assert watched.began < alert.samples[0][0] < alert.samples[-1][0] < watched.ended - SCRAPES_AFTER_REPAIR / 2


def test_the_dashboard_shows_the_drift_and_its_repair(watched):
    (score,) = watched.ask('recald_drift_score{sensor="front", frames="homogenized"}')
    (line,) = watched.ask("recald_drift_threshold")
    values = [value for _, value in score.samples if not np.isnan(value)]
    assert values[0] < line.samples[0][1] < max(values) and values[-1] < line.samples[0][1]
    states = watched.ask('recald_calibration_state{sensor="front"} == 1')
    assert {"factory", "fitting", "active"} <= {curve.labels["state"] for curve in states}
    assert len(watched.ask('recald_homogenizer_info{sensor="front"} == 1')) == 2


def test_the_gpu_that_the_driver_tells_of_is_exported_and_alerted(watched):
    def newest(expression: str) -> float:
        (curve,) = watched.ask(expression)
        return curve.samples[-1][1]

    assert newest("recald_gpu_temperature_celsius") == 91 and newest("recald_gpu_utilization_ratio") == 0.4
    assert newest("recald_gpu_memory_used_bytes / recald_gpu_memory_total_bytes") == 0.125
    (alert,) = watched.ask('ALERTS{alertname="RecaldGpuThrottled", alertstate="firing"}')
    assert alert.labels["gpu"] == "0" and alert.labels["reason"] == "heat"


def test_marks_lie_at_the_time_of_the_event(watched):
    swaps, _ = marks(DASHBOARD, watched.variables)["swaps"]
    (curve,) = watched.ask(swaps)
    at = curve.samples[-1][1] / 1000
    assert watched.began < at < watched.ended
    (committed,) = watched.ask('recald_swaps_total{sensor="front", result="committed"}')
    first = next(time for time, value in committed.samples if value == 1)
    assert at <= first <= at + 3


def test_marks_name_the_homogenizer(watched):
    """As Grafana does: each series is a mark, whose text has its labels."""
    info = watched.ask('recald_homogenizer_info{sensor="front", version!="factory"}')
    (version,) = {curve.labels["version"] for curve in info}
    for mark, text in {
        "swaps": f"swap: {version[:12]} serves",
        "fits": f"recalibration accepted {version[:12]}",
    }.items():
        expression, _ = marks(DASHBOARD, watched.variables)[mark]
        texts = {named(TITLES[mark], curve.labels) for curve in watched.ask(expression)}
        assert texts == {text}


def test_exemplars_of_fits_and_swaps_name_the_homogenizer(watched):
    (version,) = {
        c.labels["version"] for c in watched.ask('recald_homogenizer_info{sensor="front", version!="factory"}')
    }
    panel = next(panel for panel in DASHBOARD["panels"] if panel["title"] == "Recalibrations in one hour")
    asked = [substituted(target["expr"], watched.variables) for target in panel["targets"] if target["exemplar"]]
    assert len(asked) == 2  # of fits and of candidates
    for expression in (*asked, "recald_swap_pause_seconds_bucket"):
        found = watched.prometheus.exemplars(expression, watched.began, watched.ended)
        assert {"version": version} in found, expression


def test_every_metric_that_is_asked_for_is_on_the_page(watched):
    families = text_string_to_metric_families(watched.page)
    exported = {sample.name for family in families for sample in family.samples}
    exported |= set(re.findall(r"^# TYPE (\S+)", watched.page, re.MULTILINE))  # also those without a series yet
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    for name, expression in queries(watched).items():
        names = set(re.findall(r"\w+:\w+:\w+|\b(?:recald|process)_\w+|(?<=[\s(])up\b|ALERTS", f" {expression}"))
        assert names and names <= exported | recorded | NOT_FROM_RECALD, name


def test_the_page_is_as_prometheus_recommends(watched):
    assert run_tool("promtool", "check", "metrics", given=watched.page) == ""
