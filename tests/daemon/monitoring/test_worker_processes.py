"""Starts and processor time of workers are counted from 0, and their memory is that of the process that runs."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from daemon.metrics import Metrics
from daemon.monitoring.worker_processes import WorkerProcesses


class Watched:
    def __init__(self, proc: Path = Path("/proc")) -> None:
        self.checks: Any = SimpleNamespace(starts=0, pid=None, cpu_s=0.0)
        self.fits: Any = SimpleNamespace(starts=0, pid=None, cpu_s=0.0)
        self.registry = CollectorRegistry()
        workers = {"checks": self.checks, "fits": self.fits}
        self.processes = WorkerProcesses(Metrics(self.registry), workers, proc)

    def value(self, name: str, worker: str) -> float | None:
        return self.registry.get_sample_value(f"recald_worker_{name}", {"worker": worker})


def test_the_counters_exist_at_0_and_count_each_start_once():
    watched = Watched()
    assert watched.value("starts_total", "checks") == watched.value("starts_total", "fits") == 0
    for starts in (1, 1, 3):
        watched.checks.starts = starts
        watched.processes.update()
        assert watched.value("starts_total", "checks") == starts
    assert watched.value("starts_total", "fits") == 0


def test_the_processor_time_never_falls():
    watched = Watched()
    assert watched.value("cpu_seconds_total", "checks") == watched.value("cpu_seconds_total", "fits") == 0
    for told, counted in ((1.5, 1.5), (0.25, 1.5), (1.75, 1.75)):  # it falls for a moment while a process ends
        watched.fits.cpu_s = told
        watched.processes.update()
        assert watched.value("cpu_seconds_total", "fits") == counted
    assert watched.value("cpu_seconds_total", "checks") == 0


def test_the_memory_is_that_of_the_process():
    watched = Watched()
    watched.processes.update()
    assert watched.value("resident_bytes", "fits") == 0
    watched.fits.pid = os.getpid()
    watched.processes.update()
    taken = watched.value("resident_bytes", "fits")
    assert taken is not None and 20e6 < taken < 20e9


@pytest.mark.parametrize("content", [None, "", "a b c", "12"])
def test_a_process_that_ends_meanwhile_takes_nothing(tmp_path, content):
    watched = Watched(tmp_path)
    watched.checks.pid = 7
    if content is not None:
        (tmp_path / "7").mkdir()
        (tmp_path / "7" / "statm").write_text(content)
    watched.processes.update()
    assert watched.value("resident_bytes", "checks") == 0
