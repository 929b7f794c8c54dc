"""The audit log keeps every record whose append returned, and shows every change that somebody makes to it."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from running import read_only

from deploy.audit import sqlite as audit_file
from deploy.audit.chain import LOG_BEGUN, LOG_PRUNED, AuditRecord, canonical_json, chain_problems, next_record
from deploy.audit.log import AuditError, AuditLog

NOW = 1_795_600_000.25  # 2026-11-25
DAY = 86_400.0
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)  # no half of a surrogate pair
DETAILS = st.dictionaries(st.text(), JSON, max_size=3)


class Clock:
    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "audit.sqlite"


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def log(path: Path, clock: Clock) -> Iterator[AuditLog]:
    with closing(AuditLog(path, clock)) as log:
        yield log


def fill(log: AuditLog, count: int) -> list[AuditRecord]:
    return [log.append("left", "fit", {"step": step}) for step in range(count)]


def tamper(path: Path, *statements: str) -> None:
    with closing(sqlite3.connect(path)) as connection:
        for statement in statements:
            connection.execute(statement)
        connection.commit()


def numbers(log: AuditLog) -> list[int]:
    return [record.number for record in log.records()]


# What is kept


def test_a_record_is_given_back_as_it_was_appended(log, path):
    record = log.append("left", "swap", {"to": "ab", "p99_ms": 1.5})
    assert (record.number, record.sensor, record.event) == (2, "left", "swap")
    assert record.at == "2026-11-25T09:46:40.250Z"
    assert record.details == '{"p99_ms":1.5,"to":"ab"}'
    assert log.records()[-1] == record
    with closing(AuditLog(path)) as other:
        assert other.records() == log.records()


def test_the_digest_can_be_computed_without_this_program(log):
    first, record = log.records()[0], log.append("left", "swap", {"to": "é"})
    text = f'[2,"{record.at}","left","swap","{{\\"to\\":\\"\\\\u00e9\\"}}","{first.digest}"]'
    assert record.digest == hashlib.sha256(text.encode()).hexdigest()


def test_each_chain_begins_with_an_id_of_its_own(tmp_path, clock):
    ids = set()
    for name in ("one", "two"):
        with closing(AuditLog(tmp_path / name, clock)) as log:
            (record,) = log.records()
            ids.add(record.content()["install"])
            assert (record.number, record.event, record.previous) == (1, LOG_BEGUN, "0" * 64)
    assert len(ids) == 2


def test_records_can_be_chosen_by_sensor_and_number(log):
    for step in range(3):
        log.append("left", "fit", {"step": step})
        log.append("right", "fit", {"step": step})
    assert [record.content()["step"] for record in log.records("left", 2)] == [1, 2]
    assert numbers(log) == list(range(1, 8))
    assert [record.number for record in log.records(limit=2)] == [6, 7]
    assert log.records("nobody") == log.records(limit=0) == []


def test_records_can_be_chosen_without_some_events(log):
    for event in ("fit", "state", "state", "swap"):
        log.append("left", event, {})
    assert [record.event for record in log.records("left", exclude=("state",))] == ["fit", "swap"]
    assert [record.event for record in log.records(limit=1, exclude=("swap", "state"))] == ["fit"]


def test_a_clock_that_jumps_back_changes_no_order(log, clock):
    clock.now = 0.0
    fill(log, 2)
    assert numbers(log) == [1, 2, 3]
    assert log.records()[-1].at == "1970-01-01T00:00:00.000Z"
    assert log.verify() == []


@settings(max_examples=40)
@given(entries=st.lists(st.tuples(TEXT, TEXT, DETAILS), min_size=1, max_size=4))
def test_whatever_is_appended_comes_back_and_verifies(shared, entries):
    appended = [shared.append(sensor, event, details) for sensor, event, details in entries]
    found = shared.records(limit=len(entries))
    assert found == appended
    assert [(r.sensor, r.event, r.content()) for r in found] == entries
    assert shared.verify(appended[0].anchor) == []


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AuditLog]:
    with closing(AuditLog(tmp_path_factory.mktemp("shared") / "audit.sqlite", Clock())) as log:
        yield log


def deep() -> dict[str, object]:
    details: dict[str, object] = {}
    for _ in range(100_000):
        details = {"deeper": details}
    return details


@pytest.mark.parametrize(
    "details",
    [{"loss": float("nan")}, {"x": [float("inf")]}, {"x": object()}, {"x": b""}, {1: 1, "1": 2}, deep()],
    ids=["nan", "infinity", "object", "bytes", "mixed keys", "deep"],
)
def test_details_that_json_cannot_hold_are_refused(log, details):
    with pytest.raises(ValueError, match="JSON"):
        log.append("left", "fit", details)
    assert numbers(log) == [1]


def test_a_name_that_is_no_text_is_refused_and_the_log_goes_on(log):
    with pytest.raises(ValueError, match="surrogates not allowed"):
        log.append("\ud800", "fit", {})
    assert fill(log, 1)[0].number == 2


@pytest.mark.parametrize("event", [LOG_BEGUN, LOG_PRUNED])
def test_only_the_log_itself_writes_its_own_events(log, event):
    with pytest.raises(ValueError, match="only the log itself writes the event"):
        log.append("", event, {"number": 1})


def test_a_record_is_a_line_of_json(log):
    record = log.append("left", "note", {"text": "one\ntwo"})
    assert json.loads(record.json_line()) == {**vars(record), "details": {"text": "one\ntwo"}}
    assert "\n" not in record.json_line()


def test_a_damaged_record_is_shown_as_it_is(log, path):
    fill(log, 3)
    tamper(path, "UPDATE record SET details = '{' WHERE number = 2", "UPDATE record SET at = x'ff' WHERE number = 3")
    lines = [json.loads(record.json_line()) for record in log.records()]
    assert [line["details"] for line in lines[1:]] == ["{", {"step": 1}, {"step": 2}]
    assert lines[2]["at"] == "b'\\xff'"


# What is found


@pytest.fixture(scope="module")
def five(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("five") / "audit.sqlite"
    with closing(AuditLog(path, Clock())) as log:
        fill(log, 4)
    return path


FIELDS = ["number", "at", "sensor", "event", "details", "previous", "digest"]


@contextmanager
def undone(connection: sqlite3.Connection) -> Iterator[None]:
    connection.execute("BEGIN")
    try:
        yield
    finally:
        connection.execute("ROLLBACK")


@settings(max_examples=150)
@given(data=st.data())
def test_any_change_of_any_field_is_found(five, data):
    with closing(AuditLog(five)) as log:
        connection = log._connection  # inside its transaction the change is seen, and undone after
        number, field = data.draw(st.integers(1, 5)), data.draw(st.sampled_from(FIELDS))
        (old,) = connection.execute(f"SELECT {field} FROM record WHERE number = ?", (number,)).fetchone()
        new = data.draw(changed(field, old))
        with undone(connection):
            connection.execute(f"UPDATE record SET {field} = ? WHERE number = ?", (new, number))
            assert log.verify() != []
        assert log.verify() == []


def changed(field: str, old: object) -> st.SearchStrategy[object]:
    if field == "number":
        return st.integers(-(2**63), 2**63 - 1).filter(lambda new: not 1 <= new <= 5)
    assert isinstance(old, str)
    flipped = st.tuples(st.integers(0, max(len(old) - 1, 0)), st.integers(1, 127)).map(lambda f: flip(old, *f))
    other = TEXT | st.binary(max_size=8) | st.just(old.encode()) | st.integers(0, 9) | st.floats(allow_nan=False)
    # A column of text turns a number into text, so a number that reads like the old text is no change.
    return (flipped | other).filter(lambda new: new != old and str(new) != old)


def flip(text: str, position: int, bits: int) -> str:
    data = bytearray(text.encode() or b"\0")
    data[position] ^= bits
    return data.decode()


@pytest.mark.parametrize(
    ("statements", "told"),
    [
        (["DELETE FROM record WHERE number = 3"], ["record 4 comes right after record 2: what was between"]),
        (["DELETE FROM record WHERE number < 3"], ["record 3 comes right after record 0: what was between"]),
        (["DELETE FROM record"], ["the log is empty"]),
        (
            ["DELETE FROM record WHERE number = 3", "UPDATE record SET number = number - 1 WHERE number > 3"],
            ["record 3 is not what was written", "record 4 is not", "record 3 does not follow record 2"],
        ),
        (
            [f"UPDATE record SET number = {a} WHERE number = {b}" for a, b in [(9, 3), (3, 4), (4, 9)]],
            ["record 3 is not what was written", "record 4 is not", "record 3 does not follow record 2"],
        ),
        (
            ["INSERT INTO record SELECT 0, at, sensor, event, details, previous, digest FROM record LIMIT 1"],
            ["record 0 is not what was written", "record 0 comes right after record 0"],
        ),
        (
            ["INSERT INTO record SELECT 6, at, sensor, event, details, digest, digest FROM record WHERE number = 5"],
            ["record 6 is not what was written"],
        ),
    ],
    ids=["deleted", "oldest deleted", "all deleted", "renumbered", "exchanged", "inserted before", "inserted after"],
)
def test_records_removed_moved_or_inserted_are_found(five, tmp_path, statements, told):
    path = tmp_path / "audit.sqlite"
    shutil.copy(five, path)
    with closing(AuditLog(path)) as log:
        tamper(path, *statements)
        found = log.verify()
        assert all(any(problem.startswith(start) for problem in found) for start in told), found


def test_a_log_cut_short_is_found_by_what_was_seen_elsewhere(log, path):
    anchor = fill(log, 3)[-1].anchor
    assert log.verify(anchor) == []
    tamper(path, "DELETE FROM record WHERE number = 4")
    assert log.verify() == []
    assert log.verify(anchor) == ["the log ends at record 3, and record 4 was seen elsewhere: its end is missing"]
    log.append("left", "fit", {"step": 2.5})
    assert log.verify() == []
    assert "record 4 is not the one seen elsewhere" in log.verify(anchor)[0]


def test_a_log_made_anew_is_found_by_what_was_seen_elsewhere(log, tmp_path):
    anchor = fill(log, 2)[0].anchor
    with closing(AuditLog(tmp_path / "other", Clock())) as other:
        fill(other, 2)
        assert other.verify() == []
        assert "record 2 is not the one seen elsewhere" in other.verify(anchor)[0]


def test_two_logs_cannot_be_spliced(log, tmp_path):
    fill(log, 3)
    with closing(AuditLog(tmp_path / "other", Clock())) as other:
        fill(other, 4)
    with closing(sqlite3.connect(log.path)) as connection:
        connection.execute("ATTACH ? AS other", (str(tmp_path / "other"),))
        connection.execute("INSERT INTO record SELECT * FROM other.record WHERE number = 5")
        connection.commit()
    assert log.verify() == ["record 5 does not follow record 4: one of them was replaced"]


def test_a_record_after_one_that_was_tampered_with_hides_nothing(log, path):
    fill(log, 1)
    tamper(path, "UPDATE record SET digest = CAST(x'00ff' AS TEXT) WHERE number = 2")
    fill(log, 1)
    assert log.verify()[0] == "record 2 is not what was written"


# What is removed


def days(log: AuditLog, clock: Clock, *when: float) -> list[AuditRecord]:
    records = []
    for day in when:
        clock.now = NOW + day * DAY
        records += fill(log, 1)
    return records


def test_the_oldest_are_pruned_and_a_record_says_so(log, clock):
    records = days(log, clock, 1, 2, 3, 4)
    pruned = log.prune(NOW + 2.5 * DAY)
    assert numbers(log) == [1, 4, 5, 6]
    assert pruned == log.records()[-1] and pruned.event == LOG_PRUNED
    assert pruned.content() == {
        "removed": 2,
        "number": 3,
        "digest": records[1].digest,
        "keep_since": "2026-11-27T21:46:40.250Z",
        "problems": [],
    }
    assert log.verify() == log.verify(records[2].anchor) == log.verify(pruned.anchor) == []
    assert log.verify(records[1].anchor) == [
        "record 3, seen elsewhere, is no longer here to compare with: use a newer anchor"
    ]


def test_pruning_again_and_again_leaves_a_log_that_verifies(log, clock):
    for day in range(1, 30):
        days(log, clock, day)
        log.prune(NOW + (day - 3.5) * DAY)
        assert log.verify() == []
    removed = sum(record.content()["removed"] for record in log.records() if record.event == LOG_PRUNED)
    assert 3 < len(log.records()) < 12 and removed > 3


def test_everything_but_the_first_record_may_be_pruned(log, clock):
    days(log, clock, 1, 2)
    assert log.prune(NOW + 9 * DAY).content()["removed"] == 2
    assert numbers(log) == [1, 4]
    assert log.verify() == []
    assert fill(log, 1)[0].number == 5 and log.verify() == []


def test_where_nothing_is_old_nothing_is_written(log, clock):
    assert log.prune(NOW + DAY) is None
    days(log, clock, 1)
    assert log.prune(NOW) is None
    assert numbers(log) == [1, 2]


def test_an_old_record_behind_a_new_one_is_kept(log, clock):
    """The clock once ran ahead. The records that follow stay, because pruning stops at the first new record."""
    days(log, clock, 1, 50, 2)
    assert log.prune(NOW + 10 * DAY).content()["number"] == 2
    assert numbers(log) == [1, 3, 4, 5]


def test_a_clock_that_is_years_ahead_removes_no_more_than_it_may(log, clock):
    days(log, clock, 1, 2, 3, 4)
    assert log.prune(NOW + 3650 * DAY, keep=4) is None
    assert log.prune(NOW + 3650 * DAY, keep=2).content()["removed"] == 2
    assert numbers(log) == [1, 4, 5, 6] and log.verify() == []


def test_a_record_from_before_the_clock_was_set_is_as_old_as_the_next(log, clock):
    clock.now = 5.0
    fill(log, 2)
    assert log.prune(NOW) is None
    days(log, clock, 1, 20)
    assert log.prune(NOW + 10 * DAY).content()["removed"] == 3
    assert numbers(log) == [1, 5, 6]


@pytest.mark.parametrize("number", [1, 4, 5, 6])
def test_what_is_missing_after_a_pruning_is_found(log, clock, path, number):
    days(log, clock, 1, 2, 3, 4)
    log.prune(NOW + 2.5 * DAY)
    fill(log, 1)
    tamper(path, f"DELETE FROM record WHERE number = {number}")
    assert log.verify() != []


def test_a_pruning_vouches_for_one_digest_alone():
    first = next_record((0, "0" * 64), "", "", LOG_BEGUN, "{}")
    for digest, found in (
        ("a" * 64, []),
        ("b" * 64, ["record 9 comes right after record 1: what was between them is"]),
    ):
        pruned = next_record((8, "a" * 64), "", "", LOG_PRUNED, canonical_json({"number": 8, "digest": digest}))
        assert [problem.removesuffix(" missing") for problem in chain_problems([first, pruned], None)] == found


def test_pruning_does_not_clear_what_was_tampered_with(log, clock, path):
    days(log, clock, 1, 2, 3)
    tamper(path, "UPDATE record SET sensor = 'right' WHERE number = 2")
    pruned = log.prune(NOW + 2.5 * DAY)
    assert log.verify() == []
    assert pruned.content()["problems"] == ["record 2 is not what was written"]


# What it survives


APPENDING = """
import sys
from pathlib import Path
from deploy.audit.log import AuditLog
log = AuditLog(Path(sys.argv[1]))
for step in range(int(sys.argv[2])):
    record = log.append(sys.argv[3], "fit", {"step": step, "filler": "x" * 300})
    print(record.number, record.digest, flush=True)
"""


def appending(path: Path, count: int, sensor: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", APPENDING, str(path), str(count), sensor]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_a_killed_process_loses_no_record_whose_append_returned(path):
    pause = random.Random(7)
    kept: dict[int, str] = {}
    for _ in range(6):
        with appending(path, 100_000, "left") as process:
            assert process.stdout is not None
            first = process.stdout.readline()
            time.sleep(pause.uniform(0.0, 0.1))
            process.kill()
            lines = (first + process.stdout.read()).splitlines(keepends=True)
        kept.update((int(n), digest) for n, digest in (line.split() for line in lines if line.endswith("\n")))
    with closing(AuditLog(path)) as log:
        found = {record.number: record.digest for record in log.records()}
        assert log.verify(max(kept.items())) == []
    assert kept.items() <= found.items() and len(kept) > 12
    assert len(found) <= 1 + len(kept) + 6  # of each process at most one that it was not yet told of


def test_a_commit_is_on_the_disk_when_it_returns(log):
    """A test cannot cut the power. It can check that SQLite was told to guard against a power cut."""
    assert log._connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert log._connection.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL


def test_two_processes_append_to_one_chain(path):
    processes = [appending(path, 40, sensor) for sensor in ("left", "right")]
    told = [int(line.split()[0]) for process in processes for line in process.communicate()[0].splitlines()]
    with closing(AuditLog(path)) as log:
        assert log.verify() == []
        assert sorted(told) == numbers(log)[1:] == list(range(2, 82))
        assert len(log.records("left")) == len(log.records("right")) == 40


def test_threads_append_to_one_chain(log, monkeypatch):
    monkeypatch.setattr(Clock, "__call__", lambda self: time.sleep(0.001) or self.now)  # lets others in
    threads = [threading.Thread(target=fill, args=(log, 10)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert numbers(log) == list(range(1, 42))
    assert log.verify() == []


@pytest.mark.parametrize(
    ("pragma", "reason", "advice"),
    [
        ("max_page_count = 1", "database or disk is full", "free some space on its disk"),
        ("query_only = 1", "attempt to write a readonly database", "make its disk and folder writable"),
    ],
    ids=["full", "read-only"],
)
def test_a_failed_write_is_an_error_of_one_line_and_later_writes_succeed(log, pragma, reason, advice):
    log._connection.execute(f"PRAGMA {pragma}")
    with pytest.raises(AuditError) as caught:
        log.append("left", "fit", {"filler": "x" * 10_000})
    assert str(caught.value) == f"{log.path}: {reason}: {advice}"
    assert isinstance(caught.value, OSError)
    assert numbers(log) == [1]
    log._connection.execute("PRAGMA query_only = 0")
    log._connection.execute("PRAGMA max_page_count = 1000000")
    fill(log, 1)
    assert log.verify() == []


FULL_DISK = """
mount -t tmpfs -o size=160k none "$1" && exec "$2" -c '
import sys
from pathlib import Path
from deploy.audit import sqlite as audit_file
from deploy.audit.log import AuditError, AuditLog
log = AuditLog(Path(sys.argv[1]) / "audit.sqlite")
filler = Path(sys.argv[1]) / "filler"
kept = 1
try:
    while True:
        log.append("left", "fit", {"filler": "x" * 3000})
        kept += 1
except AuditError as error:
    print(error)
assert log.verify() == [] and len(log.records()) == kept
try:
    AuditLog(Path(sys.argv[1]) / "sub" / "audit.sqlite")
except AuditError as error:
    print(error)
' "$1"
"""


def test_a_full_disk_is_reported_and_does_no_harm(tmp_path):
    unshare = ["unshare", "--user", "--map-root-user", "--mount"]
    if not shutil.which("unshare") or subprocess.run([*unshare, "true"], capture_output=True).returncode:
        pytest.skip("this user may not mount a small disk of its own")
    command = [*unshare, "sh", "-c", FULL_DISK, "sh", str(tmp_path), sys.executable]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert first == f"{tmp_path}/audit.sqlite: database or disk is full: free some space on its disk"
    assert second == f"{tmp_path}/sub/audit.sqlite: No space left on device: free some space on its disk"


def test_a_log_that_another_process_holds_is_waited_for_and_then_reported(path, monkeypatch):
    monkeypatch.setattr("deploy.audit.sqlite.BUSY_TIMEOUT_S", 0.05)
    with closing(AuditLog(path)) as log, closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(AuditError, match="database is locked: another process held it for"):
            fill(log, 1)
        other.execute("ROLLBACK")
        assert fill(log, 1)[0].number == 2


def test_a_path_where_no_log_can_be_is_reported(path):
    path.mkdir(parents=True)
    with pytest.raises(AuditError, match=f"{path}: "):
        AuditLog(path)
    with pytest.raises(AuditError, match=r"File exists|Not a directory"):
        AuditLog(Path(sys.executable) / "audit.sqlite")


def test_a_closed_log_says_so(log):
    log.close()
    with pytest.raises(AuditError, match="closed database"):
        fill(log, 1)


# What is set aside


def empty(data: bytes) -> bytes:
    return b""


def cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


def junk(data: bytes) -> bytes:
    return bytes(len(data))


def last_digit(data: bytes) -> bytes:
    """Change the newest record, which SQLite keeps nearest to the start of its page."""
    position = data.index(b'{"step":3}') + len(b'{"step":3}')
    return data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :]


def write_version(data: bytes) -> bytes:
    """Write a version of the file format that SQLite does not know: it can read the file, and refuses every write."""
    return data[:18] + b"\3" + data[19:]


def schema_format(data: bytes) -> bytes:
    return data[:47] + b"\5" + data[48:]


def free_list(data: bytes) -> bytes:
    """Change the length of the free list, which SQLite reads only when it checks the file."""
    return data[:39] + b"\7" + data[40:]


def no_text(data: bytes) -> bytes:
    """Damage the definition of the table, which SQLite then quotes in its message."""
    return data.replace(b"NOT NULL", b"NOT \xffULL")


def other_table(data: bytes) -> bytes:
    return data.replace(b"sensor TEXT", b"sensor BLOB")


DAMAGES = [empty, cut, junk, last_digit, write_version, schema_format, free_list, no_text, other_table]


def test_a_disk_that_is_read_only_for_a_moment_is_no_damage(five, tmp_path, clock, monkeypatch):
    """For example when the process has too many open files: SQLite then opens the file for reading only."""
    path, connect = tmp_path / "audit.sqlite", audit_file._connect
    path.write_bytes(five.read_bytes())
    monkeypatch.setattr(audit_file, "_connect", lambda path, mode: connect(path, "ro"))
    with pytest.raises(AuditError, match="readonly"):
        AuditLog(path, clock)
    monkeypatch.undo()
    with closing(AuditLog(path, clock)) as log:
        assert len(log.records()) == 5 and log.damaged_before() == {}


def test_a_log_on_a_read_only_disk_can_be_read(five, tmp_path):
    look = (
        "from deploy.audit.log import *; log = AuditLog(Path(sys.argv[1]), read_only=True); print(len(log.records()))"
    )
    program = [sys.executable, "-c", f"import sys; from pathlib import Path; {look}"]
    (folder := tmp_path / "disk").mkdir()
    (path := folder / "audit.sqlite").write_bytes(five.read_bytes())
    done = subprocess.run([*read_only(folder), *program, str(path)], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("5\n", "")


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_set_aside_and_named_in_the_first_record(five, tmp_path, clock, damage, caplog):
    path, data = tmp_path / "audit.sqlite", damage(five.read_bytes())
    assert data != five.read_bytes()
    for number in (1, 2):
        path.write_bytes(data)
        with closing(AuditLog(path, clock)) as log:
            (record,) = log.records()
            names = [f"audit.sqlite.damaged-{n}" for n in range(1, number + 1)]
            assert record.content()["damaged"].items() >= dict.fromkeys(names, hashlib.sha256(data).hexdigest()).items()
            assert fill(log, 1)[0].number == 2 and log.verify() == []
        assert [(tmp_path / name).read_bytes() for name in names] == [data] * number
        assert f"set aside as {tmp_path / names[-1]}: " in caplog.text


def test_a_write_ahead_log_goes_with_the_file_it_belongs_to(path):
    with appending(path, 100_000, "left") as process:
        assert process.stdout is not None and process.stdout.readline()
        process.kill()
    path.write_bytes(b"junk" * 1024)
    wal = path.with_name("audit.sqlite-wal").read_bytes()
    with closing(AuditLog(path)) as log:
        named = log.records()[0].content()["damaged"]
        assert named["audit.sqlite.damaged-1-wal"] == hashlib.sha256(wal).hexdigest()
        assert len(wal) > 1000 and log.verify() == []


def test_those_who_open_a_damaged_file_at_once_set_it_aside_once(path):
    path.parent.mkdir()
    path.write_bytes(b"junk" * 1024)
    together, logs = threading.Barrier(4), []

    def start() -> None:
        together.wait()
        logs.append(AuditLog(path))
        fill(logs[-1], 1)

    threads = [threading.Thread(target=start) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert numbers(logs[0]) == [1, 2, 3, 4, 5] and logs[0].verify() == []
    assert [name.name for name in path.parent.glob("*.damaged-*")] == ["audit.sqlite.damaged-1"]
    for log in logs:
        log.close()


@settings(max_examples=150)
@given(data=st.data())
def test_damage_anywhere_is_found_or_harmless(five, tmp_path_factory, data):
    content = bytearray(five.read_bytes())
    position = data.draw(st.integers(0, 120) | st.integers(0, len(content) - 1))
    content[position] ^= data.draw(st.integers(1, 255))
    if data.draw(st.booleans()):
        del content[position:]
    found_or_harmless(bytes(content), five.read_bytes(), tmp_path_factory.mktemp("damaged") / "audit.sqlite")


def found_or_harmless(content: bytes, whole: bytes, path: Path) -> None:
    path.write_bytes(content)
    with closing(AuditLog(path, Clock())) as log:
        aside = path.with_name("audit.sqlite.damaged-1")
        if aside.exists():
            assert aside.read_bytes() == content
            assert log.records()[0].content()["damaged"]["audit.sqlite.damaged-1"]
            assert log.verify() == []
        elif log.verify() == []:
            assert [record.digest for record in log.records()] == digests(whole, path.with_name("whole"))
        log.append("left", "fit", {})


def digests(whole: bytes, path: Path) -> list[str]:
    path.write_bytes(whole)
    with closing(sqlite3.connect(path)) as connection:
        return [digest for (digest,) in connection.execute("SELECT digest FROM record ORDER BY number")]


KILLED_AT_A_LINE = """
import hashlib, itertools, logging, os, shutil, signal, sys
from pathlib import Path
import deploy.model.frozen
from deploy.audit.log import AuditLog

root, content = Path(sys.argv[1]), b"junk" * 1024
logging.disable()

def killed_at(line, path):
    '''Open in a child that is killed before the given executed line; False if it ended before.'''
    count = 0
    def trace(frame, event, argument):
        nonlocal count
        if not frame.f_code.co_filename.endswith(("/deploy/audit/sqlite.py", "/deploy/files.py")):
            return None
        count += event == "line"
        if count == line:
            os.kill(os.getpid(), signal.SIGKILL)
        return trace
    child = os.fork()
    if child == 0:
        sys.settrace(trace)
        AuditLog(path)
        os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])

for line in itertools.count(1):
    path = root / str(line) / "audit.sqlite"
    path.parent.mkdir()
    for part in ("", "-wal"):
        path.with_name(path.name + part).write_bytes(content)
    killed = killed_at(line, path)
    log = AuditLog(path)
    assert log.verify() == [] and len(log.records()) == 1, line
    damaged = log.records()[0].content()["damaged"]
    found = {name for name, digest in damaged.items() if digest == hashlib.sha256(content).hexdigest()}
    assert len(found) == 2, (line, damaged)
    assert all(path.with_name(name).read_bytes() == content for name in found), line
    log.close()
    shutil.rmtree(path.parent)
    if not killed:
        break
print(line)
"""


def test_one_killed_while_opening_is_no_harm_to_the_next(tmp_path):
    """From damage found to the new chain begun: every step is either not done or not lost."""
    (tmp_path / "tmp").mkdir()
    command = [sys.executable, "-c", KILLED_AT_A_LINE, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env={"TMPDIR": str(tmp_path / "tmp")})
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 70  # lines, and so kills
