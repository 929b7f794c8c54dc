"""The processor time of a process is read from /proc, until it is waited for; a client adds its processes up."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from daemon.worker.client import WorkerClient
from daemon.worker.machine_memory import PROC
from daemon.worker.process_times import TICK_HZ, cpu_seconds

BUSY = "import time\nwhile time.process_time() < 0.3: pass\n"


def stat(proc: Path, pid: int, user: int, system: int) -> None:
    """Write /proc/PID/stat of a process whose name has a blank and a bracket."""
    (proc / str(pid)).mkdir(exist_ok=True)
    fields = ["S", *map(str, range(10)), str(user), str(system), "0", "0"]
    (proc / str(pid) / "stat").write_text(f"{pid} (py thon) 3) {' '.join(fields)}\n")


def test_user_and_system_time_are_added(tmp_path):
    stat(tmp_path, 7, user=3 * TICK_HZ, system=TICK_HZ)
    assert cpu_seconds(7, tmp_path) == 4.0


@pytest.mark.parametrize("content", [None, "", "7 (x) S 1 2", "7 (x) " + "a " * 20])
def test_a_process_that_is_gone_has_none(tmp_path, content):
    if content is not None:
        (tmp_path / "7").mkdir()
        (tmp_path / "7" / "stat").write_text(content)
    assert cpu_seconds(7, tmp_path) == cpu_seconds(None, tmp_path) == 0


def test_it_is_that_of_the_process_and_of_one_that_has_ended():
    process = subprocess.Popen([sys.executable, "-c", BUSY])
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    took = cpu_seconds(process.pid, PROC)
    assert 0.25 < took < 5
    process.wait()
    assert cpu_seconds(process.pid, PROC) == 0
    assert cpu_seconds(os.getpid(), PROC) == pytest.approx(time.process_time(), abs=0.1)


def test_a_client_keeps_the_time_of_a_process_that_is_killed_twice():
    client = WorkerClient(Path("model.pt2"), "0" * 64, "eager", Path(), 1)
    client._process = process = subprocess.Popen([sys.executable, "-c", BUSY])
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    took = client.cpu_s
    for _ in range(2):  # Popen.kill waits for what is dead
        client.kill()
        assert client.cpu_s == took > 0.25
    client.finish()
    assert client.cpu_s == took


def test_a_client_keeps_the_time_of_the_processes_before(tmp_path):
    client = WorkerClient(Path("model.pt2"), "0" * 64, "eager", Path(), 1, proc=tmp_path)
    ended = SimpleNamespace(wait=lambda timeout: 0, kill=lambda: None)
    total = 0.0
    assert client.cpu_s == 0
    for pid, ticks in ((7, 250), (8, 50)):
        stat(tmp_path, pid, user=ticks, system=0)
        client._process = SimpleNamespace(pid=pid, **vars(ended))  # type: ignore[assignment]
        total += ticks / TICK_HZ
        assert client.cpu_s == total
        client.finish()
        (tmp_path / str(pid) / "stat").unlink()
        assert client.cpu_s == total
