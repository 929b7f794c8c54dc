"""Every alert fires when it must and stays silent when it must; every rule is explained on a page of its own."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from places import ROOT
from prometheus_tools import MONITORING, RULES, run_tool

RECORDING, ALERTS = RULES / "recald.rules.yaml", RULES / "recald.alerts.yaml"
INTERVAL_S = 15
DEVICE = {"job": "recald", "instance": "one"}
FRONT = DEVICE | {"sensor": "front"}


def rules(path: Path = ALERTS) -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(path.read_text())["groups"] for rule in group["rules"]]


ALERT = {rule["alert"]: rule for rule in rules()}


class Case(NamedTuple):
    """Series as promtool writes them, one sample every `interval_s`, and what becomes of an alert at a time.

    value: how `$value` is printed in the description. labels: of the alert; None where it must be silent.
    """

    alert: str
    name: str
    series: dict[str, str]
    at: str
    labels: dict[str, str] | None = None
    value: str = ""
    interval_s: int = INTERVAL_S


def of_front(metric: str, **labels: str) -> str:
    return _series(metric, FRONT | labels)


def of_device(metric: str, **labels: str) -> str:
    return _series(metric, DEVICE | labels)


def _series(metric: str, labels: dict[str, str]) -> str:
    return f"{metric}{{{','.join(f'{name}={value!r}' for name, value in labels.items())}}}".replace("'", '"')


def state(name: str, values: str) -> dict[str, str]:
    return {of_front("recald_calibration_state", state=name): values}


RECEIVED = {of_front("recald_frames_received_total"): "0+150x60"}
STALE, SUPERSEDED = (of_front("recald_frames_dropped_total", reason=reason) for reason in ("stale", "superseded"))
SILENCE, ALARM = of_front("recald_camera_silence_seconds"), of_front("recald_drift_alarm")
FAILED, REJECTED = (of_front("recald_fits_total", result=result) for result in ("failed", "rejected"))
REGRESS, OPERATOR = (of_front("recald_rollbacks_total", reason=reason) for reason in ("regress", "operator"))
STATE_AGE, OVERDUE = of_front("recald_calibration_state_age_seconds"), of_front("recald_drift_checks_overdue")
UP, AUDIT = of_device("up"), of_device("recald_audit_writable")
FREE, SIZE = of_device("recald_state_directory_free_bytes"), of_device("recald_state_directory_size_bytes")
CLOCK = of_device("recald_clock_timestamp_seconds")
CERTIFICATE, DAY_S = of_device("recald_certificate_expiry_timestamp_seconds"), 86_400
CHECK_STARTS, FIT_STARTS = (of_device("recald_worker_starts_total", worker=worker) for worker in ("checks", "fits"))
CHECKS = DEVICE | {"worker": "checks"}
HOT, AT_LIMIT = (of_device("recald_gpu_throttled", gpu="0", reason=reason) for reason in ("heat", "power"))
ONE_START = {of_device("process_start_time_seconds"): "1e9x400"}
FOUR_RESTARTS = {of_device("process_start_time_seconds"): "1e9x60 2e9x40 3e9x40 4e9x40 5e9x200"}
UNKNOWN = " ".join(["NaN"] * 40)


def starts(counted: str) -> dict[str, str]:
    """Starts of the process of the checks, while recald runs on."""
    return {CHECK_STARTS: counted} | ONE_START


def latency(usual_quick: bool, quick_for: int, slow_for: int) -> dict[str, str]:
    """150 results every 15 s: within 10 ms for a time, and then within 50 ms. Times in samples."""
    quick = f"0+{150 if usual_quick else 0}x{quick_for}"
    last = 150 * quick_for if usual_quick else 0
    return {
        of_front("recald_end_to_end_seconds_bucket", le="0.005"): f"0+0x{quick_for + slow_for}",
        of_front("recald_end_to_end_seconds_bucket", le="0.01"): f"{quick} {last}+0x{slow_for}",
        of_front("recald_end_to_end_seconds_bucket", le="0.05"): f"0+150x{quick_for + slow_for}",
        of_front("recald_end_to_end_seconds_bucket", le="+Inf"): f"0+150x{quick_for + slow_for}",
    }


CASES = [
    Case("RecaldDown", "does not answer", {UP: "1x4 0x20"}, "5m", DEVICE),
    Case("RecaldDown", "is off and its agent sends nothing", {UP: "1x4 _x60"}, "12m", DEVICE),
    Case("RecaldDown", "answers again in time", {UP: "1x4 0x4 1x20"}, "5m"),
    Case("RecaldCameraSilent", "stops", {SILENCE: "0x4 6+15x20"}, "4m", FRONT, "2m 51s"),
    Case("RecaldCameraSilent", "comes again", {SILENCE: "0x4 6+15x2 0x20"}, "4m"),
    Case("RecaldFramesRefused", "one in ten", RECEIVED | {STALE: "0+15x60"}, "12m", FRONT, "10%"),
    Case("RecaldFramesRefused", "one in fifty", RECEIVED | {STALE: "0+3x60"}, "12m"),
    Case(
        "RecaldFramesRefused", "superseded ones are answered by newer ones", RECEIVED | {SUPERSEDED: "0+90x60"}, "12m"
    ),
    Case("RecaldFramesRefused", "no frames at all", {of_front("recald_frames_received_total"): "7x60"}, "12m"),
    Case("RecaldDriftAlarm", "lasts", {ALARM: "0x4 1x20"}, "5m", FRONT),
    Case("RecaldDriftAlarm", "is repaired within a minute", {ALARM: "0x4 1x4 0x20"}, "5m"),
    Case("RecaldDriftAlarm", "is unknown", {ALARM: UNKNOWN}, "5m"),
    Case(
        "RecaldNotRepairable",
        "three tries failed",
        state("invalid", "0x4 1x20"),
        "4m",
        FRONT | {"state": "invalid"},
    ),
    Case("RecaldNotRepairable", "another state", state("invalid", "0x24") | state("active", "1x24"), "4m"),
    Case("RecaldRecalibrationFailing", "three broke", {FAILED: "0x4 1x40 2x40 3x40"}, "31m", FRONT),
    Case("RecaldRecalibrationFailing", "two broke", {FAILED: "0x4 1x40 2x80"}, "31m"),
    Case("RecaldRecalibrationFailing", "none was better", {REJECTED: "0x4 1x40 2x40 3x40"}, "31m"),
    Case(
        "RecaldApprovalWaits",
        "since the morning",
        {STATE_AGE: "14400+15x40"} | state("awaiting_approval", "1x40"),
        "8m",
        FRONT,
        "4h 8m 0s",
    ),
    Case("RecaldApprovalWaits", "since now", {STATE_AGE: "0+15x40"} | state("awaiting_approval", "1x40"), "8m"),
    Case(
        "RecaldApprovalWaits",
        "another state lasts",
        {STATE_AGE: "14400+15x40"} | state("awaiting_approval", "0x40") | state("active", "1x40"),
        "8m",
    ),
    Case("RecaldRolledBack", "by itself", {REGRESS: "0x4 1x20"}, "2m", FRONT | {"reason": "regress"}),
    Case("RecaldRolledBack", "by an operator", {OPERATOR: "0x4 1x20"}, "2m"),
    Case("RecaldRolledBack", "long ago", {REGRESS: "0x4 1x160"}, "35m"),
    Case("RecaldLatencyRegression", "results come late", latency(True, 480, 120), "2h25m", FRONT, "48ms"),
    Case("RecaldLatencyRegression", "always as late", latency(False, 480, 120), "2h25m"),
    Case("RecaldLatencyRegression", "late for ten minutes", latency(True, 480, 40), "2h10m"),
    Case("RecaldDriftChecksDead", "none ends", {OVERDUE: "0x4 1x20"}, "4m", FRONT),
    Case("RecaldDriftChecksDead", "they end", {OVERDUE: "0x24"}, "4m"),
    Case("RecaldWorkerRestarts", "each minute", starts("1+0.25x60"), "15m", CHECKS),
    Case("RecaldWorkerRestarts", "recald started", starts("0x4 1x60"), "15m"),
    Case("RecaldWorkerRestarts", "each fit has one of its own", {FIT_STARTS: "0+1x60"} | ONE_START, "15m"),
    Case("RecaldWorkerRestarts", "hours ago", starts("1+1x10 11x400"), "80m"),
    Case("RecaldWorkerRestarts", "three more", starts("1x240 2x40 3x40 4x80"), "90m"),
    Case("RecaldWorkerRestarts", "four more", starts("1x240 2x30 3x30 4x30 5x70"), "90m", CHECKS),
    Case("RecaldWorkerRestarts", "three more, seen each 17 s", starts("1x240 2x40 3x40 4x80"), "102m", interval_s=17),
    Case(
        "RecaldWorkerRestarts",
        "four more, seen each 17 s",
        starts("1x240 2x30 3x30 4x30 5x70"),
        "102m",
        CHECKS,
        interval_s=17,
    ),
    Case(
        "RecaldWorkerRestarts",
        "recald itself was restarted four times",
        {CHECK_STARTS: "1x60 0 1x39 0 1x39 0 1x39 0 1x199"} | FOUR_RESTARTS,
        "70m",
    ),
    Case(
        "RecaldWorkerRestarts",
        "recald was restarted, and it ended four times besides",
        {CHECK_STARTS: "1x60 0 1x39 0 1 2 3 4 5x35 0 1x39 0 1x199"} | FOUR_RESTARTS,
        "70m",
        CHECKS,
    ),
    Case("RecaldGpuThrottled", "too hot", {HOT: "0x8 1x80"}, "20m", DEVICE | {"gpu": "0", "reason": "heat"}, "100%"),
    Case("RecaldGpuThrottled", "hot at times", {HOT: "0x8" + " 1x2 0x6" * 10}, "20m"),
    Case("RecaldGpuThrottled", "at its limit of power", {AT_LIMIT: "1x90"}, "20m"),
    Case("RecaldAuditNotWritable", "the disk is full", {AUDIT: "1x4 0x20"}, "4m", DEVICE),
    Case("RecaldAuditNotWritable", "one slow write", {AUDIT: "1x4 0x2 1x20"}, "4m"),
    Case("RecaldDiskNearlyFull", "4 % free", {FREE: "4e9x40", SIZE: "1e11x40"}, "8m", DEVICE),
    Case("RecaldDiskNearlyFull", "100 MB of a small disk", {FREE: "1e8x40", SIZE: "1e9x40"}, "8m", DEVICE),
    Case("RecaldDiskNearlyFull", "half is free", {FREE: "5e10x40", SIZE: "1e11x40"}, "8m"),
    Case("RecaldDiskNearlyFull", "unknown", {FREE: UNKNOWN, SIZE: UNKNOWN}, "8m"),
    Case("RecaldClockNotSet", "an hour off", {CLOCK: "3600+15x60"}, "10m", DEVICE, "1h 0m 0s"),
    Case("RecaldClockNotSet", "a second off", {CLOCK: "1+15x60"}, "10m"),
    Case("RecaldClockNotSet", "set after a minute", {CLOCK: "9000+15x4 75+15x60"}, "10m"),
    Case("RecaldCertificateEnds", "in ten days", {CERTIFICATE: f"{10 * DAY_S}x400"}, "80m", DEVICE, "9d 22h 40m 0s"),
    Case("RecaldCertificateEnds", "has ended", {CERTIFICATE: "600x400"}, "80m", DEVICE, "-1h 10m 0s"),
    Case("RecaldCertificateEnds", "in thirty days", {CERTIFICATE: f"{30 * DAY_S}x400"}, "80m"),
    Case("RecaldCertificateEnds", "there is none", {CERTIFICATE: UNKNOWN + " NaN" * 360}, "80m"),
    Case("RecaldCertificateEnds", "renewed", {CERTIFICATE: f"{10 * DAY_S}x100 {90 * DAY_S}x300"}, "80m"),
]

# When its condition holds, but for less time than the alert waits.
TOO_SHORT = [
    Case("RecaldDown", "not for long", {UP: "1x4 0x20"}, "2m"),
    Case("RecaldCameraSilent", "not for long", {SILENCE: "0x4 6+15x20"}, "1m45s"),
    Case("RecaldFramesRefused", "not for long", RECEIVED | {STALE: "0+15x60"}, "4m"),
    Case("RecaldDriftAlarm", "not for long", {ALARM: "0x4 1x20"}, "2m"),
    Case("RecaldNotRepairable", "not for long", state("invalid", "0x4 1x20"), "1m45s"),
    Case("RecaldRecalibrationFailing", "not for long", {FAILED: "0x4 1x40 2x40 3x40"}, "22m"),
    Case("RecaldApprovalWaits", "not for long", {STATE_AGE: "14400+15x40"} | state("awaiting_approval", "1x40"), "3m"),
    Case("RecaldLatencyRegression", "not for long", latency(True, 480, 120), "2h10m"),
    Case("RecaldDriftChecksDead", "not for long", {OVERDUE: "0x4 1x20"}, "1m45s"),
    Case("RecaldWorkerRestarts", "not for long", starts("1+1x60"), "4m"),
    Case("RecaldGpuThrottled", "not for long", {HOT: "0x8 1x80"}, "9m"),
    Case("RecaldAuditNotWritable", "not for long", {AUDIT: "1x4 0x20"}, "1m45s"),
    Case("RecaldDiskNearlyFull", "not for long", {FREE: "4e9x40", SIZE: "1e11x40"}, "3m"),
    Case("RecaldClockNotSet", "not for long", {CLOCK: "3600+15x60"}, "3m"),
    Case("RecaldCertificateEnds", "not for long", {CERTIFICATE: f"{10 * DAY_S}x400"}, "50m"),
]


def promtool_test(case: Case) -> dict[str, Any]:
    rule = ALERT[case.alert]
    expected = []
    if case.labels is not None:
        texts = {name: rendered(text, case) for name, text in rule["annotations"].items()}
        expected = [{"exp_labels": case.labels | rule["labels"], "exp_annotations": texts}]
    return {
        "name": f"{case.alert}: {case.name}",
        "interval": f"{case.interval_s}s",
        "input_series": [{"series": series, "values": values} for series, values in case.series.items()],
        "alert_rule_test": [{"eval_time": case.at, "alertname": case.alert, "exp_alerts": expected}],
    }


def rendered(text: str, case: Case) -> str:
    """Fill in an annotation as Prometheus must."""
    assert case.labels is not None
    labels = case.labels
    text = re.sub(r"\{\{ \$labels\.(\w+) \}\}", lambda found: labels[found[1]], text)
    return re.sub(r"\{\{ \$value \| \w+ \}\}", case.value, text)


@pytest.fixture
def run_cases(tmp_path: Path) -> Iterator[Any]:
    def run_cases(cases: list[Case], alerts: Path = ALERTS) -> str:
        file = tmp_path / "cases.yaml"
        tests = [promtool_test(case) for case in cases]
        content = {"rule_files": [str(RECORDING), str(alerts)], "evaluation_interval": "15s", "tests": tests}
        file.write_text(yaml.safe_dump(content))
        return run_tool("promtool", "test", "rules", file)

    yield run_cases


def test_every_alert_fires_when_it_must_and_is_silent_when_it_must(run_cases):
    assert "SUCCESS" in run_cases(CASES)


def test_every_alert_has_cases_of_both_kinds():
    fires = {case.alert for case in CASES if case.labels is not None}
    silent = {case.alert for case in CASES if case.labels is None}
    assert fires == silent == set(ALERT)


def test_every_alert_waits_as_long_as_it_says(run_cases, tmp_path):
    assert "SUCCESS" in run_cases(TOO_SHORT)
    assert {case.alert for case in TOO_SHORT} == {name for name, rule in ALERT.items() if rule["for"] != "0m"}
    impatient = tmp_path / "impatient.yaml"
    impatient.write_text(re.sub(r"for: \d+m", "for: 0m", ALERTS.read_text()))
    with pytest.raises(AssertionError) as caught:
        run_cases(TOO_SHORT, impatient)
    assert not [case.alert for case in TOO_SHORT if f"{case.alert}: {case.name}" not in str(caught.value)]


def test_promtool_finds_nothing_to_complain_about():
    assert "SUCCESS" in run_tool("promtool", "check", "rules", RECORDING, ALERTS)
    assert "SUCCESS" in run_tool("promtool", "check", "config", RULES / "prometheus.yml")
    assert "SUCCESS" in run_tool("promtool", "check", "config", RULES / "central.yaml")
    assert "SUCCESS" in run_tool("promtool", "check", "config", "--agent", RULES / "agent.yaml")


def test_the_example_of_alertmanager_is_valid():
    assert "SUCCESS" in run_tool("amtool", "check-config", MONITORING / "alertmanager" / "alertmanager.yml")


def test_recording_rules_are_named_level_metric_operation():
    assert all(re.fullmatch(r"(sensor|job_state):recald_\w+:\w+", rule["record"]) for rule in rules(RECORDING))


@pytest.mark.parametrize("alert", ALERT)
def test_every_alert_says_what_it_means_and_where_to_read_on(alert):
    rule = ALERT[alert]
    assert set(rule["annotations"]) == {"summary", "description", "runbook_url"}
    assert rule["labels"]["severity"] in ("critical", "warning") and re.fullmatch(r"\d+m", rule["for"])
    page = ROOT / rule["annotations"]["runbook_url"]
    text = page.read_text()
    assert text.startswith(f"# {alert}\n")
    assert re.findall(r"^## (.+)$", text, re.MULTILINE) == ["What it means", "Look", "Do", "Silence"]
    assert f"alertname={alert}" in text and f"\n`{rule['labels']['severity']}`, {waits(rule)}.\n" in text


def waits(rule: dict[str, Any]) -> str:
    minutes = int(rule["for"].removesuffix("m"))
    return f"after {minutes} minute{'' if minutes == 1 else 's'}" if minutes else "at once"


def test_every_runbook_is_of_an_alert_and_in_the_index():
    folder = ROOT / "docs" / "runbooks"
    pages = {path.name for path in folder.glob("*.md")} - {"index.md"}
    assert pages == {Path(rule["annotations"]["runbook_url"]).name for rule in rules()}
    index = (folder / "index.md").read_text()
    for alert, rule in ALERT.items():
        name = Path(rule["annotations"]["runbook_url"]).name
        assert f"| [{alert}]({name}) | `{rule['labels']['severity']}` | {waits(rule)} |" in index
