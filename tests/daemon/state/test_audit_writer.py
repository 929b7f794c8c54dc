"""Records that cannot be written wait, in order, and the daemon knows."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from daemon.metrics import Metrics
from daemon.state.audit_writer import MAX_ANSWER_S, MAX_RECENT_RECORDS, AuditWriter
from daemon.state.lock import StateMoved
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


def wait_for(background: ThreadPoolExecutor) -> None:
    background.submit(lambda: None).result(10)


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
    assert not writer.problem


def test_one_can_wait_for_the_records_but_not_for_a_disk_that_is_full_or_hangs(writer, disk, background):
    held = threading.Event()
    background.submit(held.wait)
    writer.record("front", "swap", {})
    writer.wait_until_written(0.05)
    assert writer.pending, "so long and no longer"
    held.set()
    writer.wait_until_written(10)
    assert not writer.pending and events(disk) == ["swap"]

    disk.full, writer._audit = True, None
    writer.record("front", "rollback", {})
    begin = time.monotonic()
    writer.wait_until_written(10)
    assert writer.problem and time.monotonic() - begin < 5


def test_the_newest_records_are_at_hand_also_those_from_before_the_start(disk, background):
    earlier = AuditLog(disk.path)
    earlier.append("front", "swap", {})
    earlier.append("front", "state", {"state": "active"})
    earlier.close()
    writer = AuditWriter(disk.open, background, Metrics(CollectorRegistry()))
    assert writer.recent == ()
    writer.record("", "start", {})
    wait_for(background)
    assert [record.event for record in writer.recent] == ["log begun", "swap", "start"]
    for number in range(MAX_RECENT_RECORDS):
        writer.record("front", "state", {"state": "active"})  # many, and each says little
        writer.record("front", "fit", {"number": number})
    background.shutdown()
    writer.close()
    assert len(writer.recent) == MAX_RECENT_RECORDS and {record.event for record in writer.recent} == {"fit"}
    assert [record.content()["number"] for record in writer.recent] == list(range(MAX_RECENT_RECORDS))


def test_records_that_are_not_on_the_disk_are_not_told(writer, disk, background):
    disk.full = True
    writer.record("front", "swap", {})
    background.shutdown()
    assert writer.recent == ()


def test_records_that_a_full_disk_refuses_wait_and_are_written_first(writer, disk, registry, background, caplog):
    disk.full = True
    for event in ("start", "fit"):
        writer.record("front", event, {})
    background.submit(lambda: None).result()
    assert "full" in writer.problem and registry.get_sample_value("recald_audit_failures_total") == 2
    assert len([m for m in caplog.messages if "no new homogenizer serves until" in m]) == 1
    disk.full = False
    writer.check(0.0)
    background.submit(lambda: None).result()
    assert not writer.problem
    assert events(disk) == ["start", "fit"]


def test_a_record_that_json_cannot_hold_blocks_no_other(writer, disk, background, caplog):
    writer.record("front", "drift alarm", {"score": float("nan")})
    writer.record("front", "swap", {})
    background.shutdown()
    assert events(disk) == ["drift alarm", "swap"] and not writer.problem
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


def test_a_log_that_was_removed_is_found_before_anything_is_recorded(writer, disk, registry, background, caplog):
    writer.record("front", "start", {})
    background.submit(lambda: None).result()
    moved = disk.path.rename(disk.path.with_name("moved"))
    writer.check(0.0)
    background.submit(lambda: None).result()
    assert "removed or replaced" in writer.problem
    writer.record("front", "swap", {})
    background.submit(lambda: None).result()
    assert registry.get_sample_value("recald_audit_records_total") == 1
    assert len([m for m in caplog.messages if "no new homogenizer serves until" in m]) == 1
    moved.rename(disk.path)  # put back: what waited is written
    writer.check(10.0)
    background.shutdown()
    assert events(disk) == ["start", "swap"] and not writer.problem


def test_a_directory_that_is_not_the_claimed_one_gets_no_log(disk, registry, background):
    def gone() -> None:
        raise StateMoved("gone")

    writer = AuditWriter(disk.open, background, Metrics(registry), gone)
    writer.record("front", "start", {})
    background.shutdown()
    assert writer.problem == "gone" and writer.state_moved and not disk.path.exists()


def test_a_disk_that_hangs_is_a_problem_until_it_answers(disk, registry, background):
    answer, now = threading.Event(), [0.0]
    writer = AuditWriter(disk.open, background, Metrics(registry), answer.wait, lambda: now[0])
    writer.check(now[0])
    now[0] = MAX_ANSWER_S + 1
    assert writer.problem == "the disk has not answered for 3 s"
    answer.set()
    background.submit(lambda: None).result()
    assert not writer.problem
    writer.close()


def test_each_dropped_record_is_reported_once(writer, disk, registry, background, monkeypatch):
    """More are dropped while the report about the first ones is written."""
    monkeypatch.setattr("daemon.state.audit_writer.MAX_PENDING_RECORDS", 1)
    disk.full = True
    for _ in range(4):
        writer.record("front", "state", {})
    background.submit(lambda: None).result()
    append, late = AuditLog.append, []

    def append_slowly(audit: AuditLog, sensor: str, event: str, *rest: object):
        if event == "records lost" and not late:
            late.append(True)
            writer._dropped += 2  # as `record` does on the frame thread
        return append(audit, sensor, event, *rest)

    monkeypatch.setattr(AuditLog, "append", append_slowly)
    disk.full = False
    for now in (0.0, 10.0):
        writer.check(now)
        background.submit(lambda: None).result()
    audit = AuditLog(disk.path)
    assert [r.content()["count"] for r in audit.records() if r.event == "records lost"] == [3, 2]
    audit.close()
