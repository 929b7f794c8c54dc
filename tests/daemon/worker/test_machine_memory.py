"""How much memory there is and is free, in control groups of both versions and outside of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from daemon.operator.memory import GIB
from daemon.worker.machine_memory import free_memory, total_memory
from daemon.worker.memory import MemoryLimit


def control_groups(folder: Path, lines: str, **limits: str) -> int:
    """The memory that is found where the process is in these groups, and these files limit them."""
    (folder / "proc" / "self").mkdir(parents=True)
    (folder / "proc" / "self" / "cgroup").write_text(lines)
    for path, limit in limits.items():
        file = folder / "cgroup" / path.replace("__", "/").replace("_dot_", ".")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{limit}\n")
    return total_memory(folder / "proc", folder / "cgroup")


def test_the_memory_is_that_of_the_narrowest_control_group(tmp_path: Path):
    limits = {"a__b__memory_dot_max": "max", "a__memory_dot_max": str(GIB // 8)}
    assert control_groups(tmp_path / "2", "0::/a/b\n", **limits) == GIB // 8
    first = {"memory__a__memory_dot_limit_in_bytes": str(GIB // 16)}
    assert control_groups(tmp_path / "1", "5:devices:/\n4:memory:/a\n0::/\n", **first) == GIB // 16


def test_without_limits_it_is_that_of_the_machine(tmp_path: Path):
    whole = total_memory(tmp_path / "absent", tmp_path)
    assert whole >= GIB // 4
    assert control_groups(tmp_path, "0::/a\n", memory_dot_max="max", a__memory_dot_max="9223372036854771712") == whole


@pytest.mark.parametrize(
    ("lines", "prefix", "names"),
    [
        ("0::/a\n", "a__memory_dot_", ("max", "current", "inactive_file")),
        ("4:memory:/a\n", "memory__a__memory_dot_", ("limit_in_bytes", "usage_in_bytes", "total_inactive_file")),
    ],
)
def test_what_is_free_is_what_the_group_leaves_and_at_most_what_the_machine_has(tmp_path: Path, lines, prefix, names):
    limit, used, cache = names
    stat = f"anon 7\n{cache} {GIB // 4}\n"
    numbers = {prefix + limit: str(2 * GIB), prefix + used: str(GIB), prefix + "stat": stat}
    control_groups(tmp_path, lines, **numbers)
    assert free_memory(tmp_path / "proc", tmp_path / "cgroup") == 1.25 * GIB
    meminfo = tmp_path / "proc" / "meminfo"
    meminfo.write_text(f"MemAvailable: {30 * GIB // 1024} kB\n")
    assert MemoryLimit(None, tmp_path / "proc", tmp_path / "cgroup").bytes == 0.625 * GIB
    meminfo.write_text(f"MemAvailable: {GIB // 1024} kB\n")
    assert free_memory(tmp_path / "proc", tmp_path / "cgroup") == GIB
