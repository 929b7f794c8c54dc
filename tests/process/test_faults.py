"""Whatever breaks or is killed, wherever: the next start serves the last good homogenizer, and the log is whole."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import device
import faults
import pytest
from every_fault import NEW, NEXT, STARTS
from places import SUPPORT

from daemon.settings.values import DAY
from deploy.audit.chain import Anchor
from deploy.audit.log import AuditLog, audit_path

MEMORY = Path("/dev/shm")  # where there is one: a sync takes no time there
BEFORE = {"used": {"front": 3, "rear": 5}, "new": {"front": 0, "rear": 0}}
AFTER = {"used": {"front": NEW, "rear": 4}, "new": {"front": NEW, "rear": 0}}
EVERY_CALL = {"open", "write", "pwrite", "fsync", "fdatasync", "ftruncate", "rename", "unlink", "mkdir"}
Case = dict[str, Any]


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """Of a device whose front camera is at its homogenizer 3 after 2, the rear one at 5 after 4."""
    return device.used(tmp_path / "state")


def numbers(state: Path) -> list[int]:
    """Of the records in the audit log."""
    with closing(AuditLog(audit_path(state), read_only=True)) as audit:
        return [record.number for record in audit.records()]


# ---- every fault at every step


@pytest.fixture(scope="module")
def cases() -> list[Case]:
    if not faults.AVAILABLE:
        pytest.skip("faults are put into the registers of x86-64 on Linux")
    with TemporaryDirectory(prefix="recald-", dir=MEMORY if os.access(MEMORY, os.W_OK) else None) as folder:
        program = [sys.executable, str(SUPPORT / "every_fault.py"), folder]
        alone = {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        done = subprocess.run(program, capture_output=True, text=True, env=os.environ | alone)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def those(cases: list[Case], wrong: Any) -> list[Case]:
    """The cases that a condition tells from the rest."""
    return [case for case in cases if wrong(case)]


@pytest.mark.slow
def test_every_fault_is_met_at_every_step(cases: list[Case]):
    counts = Counter((case["start"], case["fault"]) for case in cases)
    print(*(f"{start}, {fault}: {count}" for (start, fault), count in counts.items()), sep="\n")
    assert set(counts) == {(start, fault) for start, kinds in STARTS.items() for fault in kinds}
    assert min(counts.values()) > 20
    assert {case["call"] for case in cases} >= EVERY_CALL
    assert not those(cases, lambda case: not case["met"])


@pytest.mark.slow
def test_the_next_start_serves_the_old_or_the_new_one_and_finds_nothing_damaged(cases: list[Case]):
    def wrong(case: Case) -> bool:
        start, served = case["start"], case["served"]
        whole = all(served[name] in (BEFORE[start][name], AFTER[start][name]) for name in device.SENSORS)
        return bool(case["wrong"]) or not whole

    assert not those(cases, wrong)
    assert {case["served"]["front"] for case in cases if case["start"] == "used"} == {3, NEW}
    assert {case["served"]["rear"] for case in cases if case["start"] == "used"} == {5, 4}


@pytest.mark.slow
def test_what_serves_after_a_kill_is_in_the_audit_log(cases: list[Case]):
    killed = those(cases, lambda case: case["fault"] in faults.KILLS)
    assert not those(killed, lambda case: case["served"]["front"] == NEW != case["recorded"])
    assert those(killed, lambda case: case["recorded"] == NEW != case["served"]["front"])  # the record comes first


@pytest.mark.slow
def test_a_disk_that_refuses_ends_no_daemon(cases: list[Case]):
    refused = those(cases, lambda case: case["fault"] not in faults.KILLS)
    assert refused and not those(refused, lambda case: not case["ended_well"])


@pytest.mark.slow
def test_the_swap_after_a_fault_succeeds(cases: list[Case]):
    assert not those(cases, lambda case: case["served_next"]["front"] != NEXT or case["wrong_next"])


# ---- a clock that jumps

YEAR = 365 * DAY


@pytest.mark.parametrize("jump", [-YEAR, 10 * YEAR])
def test_a_clock_that_jumps_loses_neither_what_serves_nor_a_record(state: Path, monkeypatch, jump: float):
    before, now = numbers(state), time.time()
    for number, at in ((NEW, now + jump), (8, now + jump), (NEXT, now)):
        monkeypatch.setattr(time, "time", lambda at=at: at)
        device.work(state, number)
    assert device.served_after_a_start(state) == ({"front": NEXT, "rear": 4}, [])
    swaps, wrong = device.audited(state)
    assert swaps["front"]["number"] == NEXT and wrong + device.damage(state) == []
    assert numbers(state)[: len(before)] == before


# ---- damage anywhere


@pytest.fixture
def killed(state: Path, tmp_path: Path) -> tuple[Path, Anchor]:
    """What a killed daemon leaves, the newest records in SQLite's write-ahead log, and the anchor of the newest."""
    with device.Writer(state) as writer:
        writer.swap("front", NEW)
        writer.roll_back("rear")
        shutil.copytree(state, tmp_path / "killed")
        with closing(AuditLog(audit_path(state), read_only=True)) as audit:
            return tmp_path / "killed", audit.records()[-1].anchor


def changes(data: bytes) -> Iterator[bytes]:
    """The file cut short, and with a bit the other way round, in several places."""
    end = len(data) - 1
    for place in {0, end // 3, 2 * end // 3, end}:
        yield data[:place]
        yield data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :]


def findings(state: Path, anchor: Anchor) -> str:
    """All that `recald verify --anchor` finds once a start has looked at the state."""
    with closing(AuditLog(audit_path(state))) as audit:
        of_log = [f"audit.sqlite-wal: {problem}" for problem in audit.verify(anchor)]
        return "\n".join([*device.damage(state), *audit.damaged_before(), *of_log])


def test_damage_to_any_file_is_found_and_what_is_intact_serves(killed: tuple[Path, Anchor], tmp_path: Path):
    left, anchor = killed
    files = [path.relative_to(left) for path in left.rglob("*") if path.is_file() and path.stat().st_size]
    assert {"audit.sqlite", "audit.sqlite-wal", "current.json", "withdrawn.json"} <= {file.name for file in files}
    for file in files:
        for damaged in changes((left / file).read_bytes()):
            shutil.rmtree(state := tmp_path / "state")
            shutil.copytree(left, state)
            (state / file).write_bytes(damaged)
            served, complaints = device.served_after_a_start(state)
            for sensor, good in (("front", (NEW, 3)), ("rear", (4,))):
                factory_with_reason = not served[sensor] and sensor in "".join(complaints)
                assert served[sensor] in good or factory_with_reason, (file, served)
            if file.name.startswith("audit.sqlite"):
                assert "audit.sqlite" in findings(state, anchor) or numbers(state) == [*range(1, anchor[0] + 1)], file
            else:
                name = file.stem if file.parent.parent.name == "sha256" else file.name
                assert name in findings(state, anchor), file
