"""A fit that takes too much memory ends with a line that says what to do, before the kernel ends anything."""

from __future__ import annotations

import os
import time
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from daemon.worker.client import WorkerClient, WorkerError, WorkerTimeout
from daemon.worker.ipc import send_message
from daemon.worker.memory import MIB, MemoryLimit


def proc(folder: Path, available: str, statm: str = "") -> Path:
    (folder / "meminfo").write_text(f"MemTotal: 9 kB\n{available}\n")
    (folder / "7").mkdir()
    (folder / "7" / "statm").write_text(statm)
    return folder


def test_half_of_what_is_free_is_the_limit_where_none_is_configured(tmp_path: Path):
    pages = 3 * MIB // os.sysconf("SC_PAGE_SIZE")
    limit = MemoryLimit(None, proc(tmp_path, "MemAvailable: 4096 kB", f"99999 {2 * pages} {pages} 1 0 1 0"))
    assert (limit.bytes, limit.told) == (2 * MIB, "2 MiB, half of what was free")
    assert limit.exceeded_by(7) == (
        "the worker took 3 MiB and was killed (limit: 2 MiB, half of what was free): "
        "take fewer recalibrate.frames, free memory, or set recalibrate.memory_mib"
    )
    assert MemoryLimit(3, tmp_path).exceeded_by(7) == ""


@pytest.mark.parametrize("available", ["", "MemAvailable: many kB", "MemAvailable:"])
def test_what_is_not_known_limits_nothing(tmp_path: Path, available: str):
    limit = MemoryLimit(None, proc(tmp_path, available, "1 2"))
    assert limit.bytes is None and limit.exceeded_by(7) == limit.exceeded_by(8) == ""
    assert MemoryLimit(64, tmp_path).exceeded_by(8) == "", "it has ended meanwhile"


def busy(client: WorkerClient) -> tuple[Connection, Connection]:
    process: Any = SimpleNamespace(pid=os.getpid())
    client._process = process
    return Pipe()


@pytest.mark.parametrize("messages", [False, True])
def test_a_worker_above_the_limit_is_ended_while_its_job_runs_whether_or_not_messages_come(messages: bool):
    client = WorkerClient(Path("model.pt2"), "0" * 64, "eager", Path(), 1)
    ours, theirs = busy(client)
    if messages:
        send_message(theirs, {"stage": "fitting", "ratio": 0.5})
    with pytest.raises(WorkerError, match=r"the worker took \d+ MiB and was killed \(limit: 1 MiB, recalibrate"):
        client._receive(ours, time.monotonic() + 10, MemoryLimit(1))


def test_faults_that_the_worker_handled_are_told_once_its_job_is_done():
    faults: list[str] = []
    client = WorkerClient(Path("model.pt2"), "0" * 64, "eager", Path(), 1, on_fault=faults.append)
    client._connection, theirs = busy(client)
    for message in ({"stage": "fitting", "ratio": 0.5}, {"done": True, "faults": ["dossier", "keeping"]}):
        send_message(theirs, message)
    client.call({"job": "observe"}, [], 10)
    assert faults == ["dossier", "keeping"]


def test_messages_that_follow_each_other_do_not_outlast_the_time_of_a_job():
    client = WorkerClient(Path("model.pt2"), "0" * 64, "eager", Path(), 1)
    ours, theirs = busy(client)
    send_message(theirs, {"stage": "fitting", "ratio": 0.5})
    with pytest.raises(WorkerTimeout):
        client._receive(ours, time.monotonic())
