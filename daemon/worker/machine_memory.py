"""How much memory there is, and how much of it is free: of the machine, or less where a control group limits it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

PROC = Path("/proc")
CGROUPS = Path("/sys/fs/cgroup")


class GroupFiles(NamedTuple):
    """Where a version of control groups tells its numbers; `cache` is a line of memory.stat."""

    limit: str
    used: str
    cache: str


VERSION_1 = GroupFiles("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
VERSION_2 = GroupFiles("memory.max", "memory.current", "inactive_file")


def total_memory(proc: Path = PROC, cgroups: Path = CGROUPS) -> int:
    """Return the bytes that this process and its siblings may use in all."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([machine, *(limit for limit, _ in _limited(proc, cgroups))])


def free_memory(proc: Path = PROC, cgroups: Path = CGROUPS) -> int | None:
    """Return the bytes that are free, or None when nothing says it."""
    free = [free for _, free in _limited(proc, cgroups)]
    if (kib := _line(proc / "meminfo", "MemAvailable:")) is not None:
        free.append(kib * 1024)
    return min(free, default=None)


def _limited(proc: Path, cgroups: Path) -> Iterator[tuple[int, int]]:
    """Yield limit and free bytes of each control group that limits this process (cgroups(7))."""
    try:
        lines = (proc / "self" / "cgroup").read_text().splitlines()
    except OSError:
        return
    for _, controllers, path in (line.split(":", 2) for line in lines):
        if controllers not in ("", "memory"):
            continue
        root, files = (cgroups / "memory", VERSION_1) if controllers else (cgroups, VERSION_2)
        group = root / path.lstrip("/")
        for folder in (group, *group.parents):
            if (limit := _number(folder / files.limit)) is not None:
                yield limit, max(0, limit - _used(folder, files))
            if folder == root:
                break


def _used(folder: Path, files: GroupFiles) -> int:
    """Return the bytes that a group takes without cached files, which the kernel gives back first."""
    cache = _line(folder / "memory.stat", files.cache) or 0
    return max(0, (_number(folder / files.used) or 0) - cache)


def _number(file: Path) -> int | None:
    try:
        text = file.read_text().strip()
    except OSError:  # the root group has no such file; in a container the path may be that of the host
        return None
    return int(text) if text.isdigit() else None  # "max" is no limit


def _line(file: Path, key: str) -> int | None:
    """Return the number behind `key` in a file of such lines."""
    try:
        return next(int(line.split()[1]) for line in file.read_text().splitlines() if line.split()[:1] == [key])
    except (OSError, ValueError, IndexError, StopIteration):
        return None
