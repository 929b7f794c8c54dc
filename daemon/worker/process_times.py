"""The processor time of another process, from /proc (proc(5))."""

from __future__ import annotations

import os
from pathlib import Path

TICK_HZ = os.sysconf("SC_CLK_TCK")  # the unit of the times in /proc/PID/stat
USER, SYSTEM = 11, 12  # places in /proc/PID/stat, counted from the state, which follows the name


def cpu_seconds(pid: int | None, proc: Path) -> float:
    """Return user and system time of a process, s; 0 for none. One that has ended tells it until it is waited for."""
    if pid is None:
        return 0.0
    try:
        fields = (proc / str(pid) / "stat").read_text().rpartition(")")[2].split()
        return (int(fields[USER]) + int(fields[SYSTEM])) / TICK_HZ
    except (OSError, IndexError, ValueError):  # it has just gone
        return 0.0
