"""Records that cannot be written wait, in order, and the daemon knows."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from daemon.metrics import Metrics
from daemon.state.audit_writer import AuditWriter
from deploy.audit.log import AuditError, AuditLog


class Disk:
    """Opens the log only while it is not full."""

    def __init__(self, path: Path) -> None:
        self.path, self.full = path, False

    def open(self) -> AuditLog:
        if self.full:
            raise AuditError(f"{self.path}: full: free some space")
        return AuditLog(self.path)


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    return Disk(tmp_path / "audit.sqlite")


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
def background():
    with ThreadPoolExecutor(1) as executor:
        yield executor


@pytest.fixture
def writer(disk: Disk, registry: CollectorRegistry, background: ThreadPoolExecutor):
    writer = AuditWriter(disk.open, background, Metrics(registry))
    yield writer
    writer.close()


def events(disk: Disk) -> list[str]:
    audit = AuditLog(disk.path)
    written = [record.event for record in audit.records()][1:]
    audit.close()
    return written


def test_records_are_written_in_order(writer, disk, registry, background):
    for event in ("start", "fit", "swap"):
        writer.record("front", event, {})
    background.shutdown()
    assert events(disk) == ["start", "fit", "swap"]
    assert registry.get_sample_value("recald_audit_records_total") == 3
    assert not writer.failing


def test_records_that_a_full_disk_refuses_wait_and_are_written_first(writer, disk, registry, background, caplog):
    disk.full = True
    for event in ("start", "fit"):
        writer.record("front", event, {})
    background.submit(lambda: None).result()
    assert writer.failing and registry.get_sample_value("recald_audit_failures_total") == 2
    assert len([m for m in caplog.messages if "nothing is swapped until" in m]) == 1
    disk.full = False
    writer.retry()
    background.submit(lambda: None).result()
    assert not writer.failing
    assert events(disk) == ["start", "fit"]


def test_a_record_that_json_cannot_hold_blocks_no_other(writer, disk, background, caplog):
    writer.record("front", "drift alarm", {"score": float("nan")})
    writer.record("front", "swap", {})
    background.shutdown()
    assert events(disk) == ["drift alarm", "swap"] and not writer.failing
    assert "a record of drift alarm cannot be written as it is" in caplog.text


def test_a_record_has_the_time_when_it_happened_not_when_it_was_written(writer, disk, background, monkeypatch):
    monkeypatch.setattr("daemon.state.audit_writer.time.time", lambda: 86_400.0)
    writer.record("front", "swap", {})
    background.shutdown()
    audit = AuditLog(disk.path)
    assert audit.records()[-1].at == "1970-01-02T00:00:00.000Z"
    audit.close()


def test_the_journal_gets_the_anchors_that_a_later_check_needs(writer, disk, background, caplog):
    with caplog.at_level("INFO"):
        writer.record("front", "swap", {"to": "a"})
        writer.record("front", "state", {})
        background.shutdown()
    audit = AuditLog(disk.path)
    number, digest = audit.records()[1].anchor
    assert caplog.messages == [f"audit record {number}:{digest}, front swap"]
    assert audit.verify((number, digest)) == []
    audit.close()
