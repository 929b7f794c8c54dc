"""How often the worker processes were started, and how much memory and processor time they take."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from daemon.metrics import Metrics
from daemon.serving.receiver_memory import PAGE_BYTES
from daemon.worker.machine_memory import PROC


class StartedProcess(Protocol):
    """What daemon.worker.client.WorkerClient tells. starts: processes so far. pid: None while none runs.

    cpu_s: processor time of all processes so far, s.
    """

    starts: int

    @property
    def cpu_s(self) -> float: ...

    @property
    def pid(self) -> int | None: ...


class WorkerProcesses:
    """Exports the processes of workers, by their names."""

    def __init__(self, metrics: Metrics, workers: Mapping[str, StartedProcess], proc: Path = PROC):
        self._metrics = metrics
        self._workers = workers
        self._proc = proc
        self._counted = dict.fromkeys(workers, 0)  # starts
        self._counted_cpu_s = dict.fromkeys(workers, 0.0)
        for name in workers:
            metrics.worker_starts.labels(name)
            metrics.worker_cpu_seconds.labels(name)

    def update(self) -> None:
        """Export what has changed; called once a second."""
        for name, worker in self._workers.items():
            starts = worker.starts  # another thread counts on
            self._metrics.worker_starts.labels(name).inc(starts - self._counted[name])
            self._counted[name] = starts
            cpu_s = max(worker.cpu_s, self._counted_cpu_s[name])  # it falls for a moment while a process ends
            self._metrics.worker_cpu_seconds.labels(name).inc(cpu_s - self._counted_cpu_s[name])
            self._counted_cpu_s[name] = cpu_s
            self._metrics.worker_resident_bytes.labels(name).set(self._resident_bytes(worker.pid))

    def _resident_bytes(self, pid: int | None) -> int:
        if pid is None:
            return 0
        try:
            return int((self._proc / str(pid) / "statm").read_text().split()[1]) * PAGE_BYTES
        except (OSError, IndexError, ValueError):  # it has just ended
            return 0
