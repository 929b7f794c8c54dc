"""The memory that a fit may take, and how much of it its process takes.

Not by setrlimit: CUDA reserves address space far beyond what it uses, and a process that meets its limit dies of an
allocation anywhere, without a word. So the daemon looks at the resident memory of the worker and ends it with a reason.
"""

from __future__ import annotations

import os
from pathlib import Path

from daemon.worker.machine_memory import CGROUPS, PROC, free_memory

MEMORY_SHARE = 0.5  # of what is free when a fit begins, where the configuration gives no limit
MIB = 1 << 20


class MemoryLimit:
    """Bytes that a worker may take, files that it maps left aside. `told` says where the limit comes from."""

    def __init__(self, mib: int | None, proc: Path = PROC, cgroups: Path = CGROUPS):
        self._proc = proc
        free = free_memory(proc, cgroups)
        self.bytes: int | None = None
        if mib is not None:
            self.bytes, self.told = mib * MIB, f"{mib} MiB, recalibrate.memory_mib"
        elif free is not None:
            self.bytes = int(MEMORY_SHARE * free)
            self.told = f"{self.bytes // MIB} MiB, half of what was free"
        else:
            self.told = "any memory: how much is free is not known"

    def exceeded_by(self, pid: int) -> str:
        """Return what to say when the process takes more, or ""."""
        taken = _taken(self._proc, pid)
        if self.bytes is None or taken is None or taken <= self.bytes:
            return ""
        advice = "take fewer recalibrate.frames, free memory, or set recalibrate.memory_mib"
        return f"the worker took {taken // MIB} MiB and was killed (limit: {self.told}): {advice}"


def _taken(proc: Path, pid: int) -> int | None:
    """Return the bytes of memory of a process that are no mapped files; None when it has ended."""
    try:
        resident, shared = (proc / str(pid) / "statm").read_text().split()[1:3]
        return (int(resident) - int(shared)) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return None
