"""Where a measurement was taken, and how it is written down."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from daemon.operator.machine import machine
from deploy.files import write_atomically


def write(name: str, results: dict[str, Any], path: Path | None) -> None:
    if path is not None:
        save(name, results, path)
        print(f"written: {path}")


def save(name: str, results: dict[str, Any], path: Path) -> None:
    document = {
        "bench": name,
        "at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": machine(),
        **results,
    }
    write_atomically(path, (json.dumps(document, indent=1) + "\n").encode())


def show(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    table = Table(title=title)
    for column in columns:
        table.add_column(column, justify="left" if column == columns[0] else "right")
    for row in rows:
        table.add_row(*(f"{cell:.2f}" if isinstance(cell, float) else str(cell) for cell in row))
    Console(width=160).print(table)


def percentiles(seconds: Sequence[float] | np.ndarray) -> dict[str, float | int | None]:
    """Count, p50, p99 and maximum, in milliseconds."""
    if len(seconds) == 0:
        return {"count": 0, "p50_ms": None, "p99_ms": None, "max_ms": None}
    p50, p99, top = np.percentile(np.asarray(seconds) * 1e3, [50, 99, 100])
    return {"count": len(seconds), "p50_ms": float(p50), "p99_ms": float(p99), "max_ms": float(top)}


def resident(process: int | str) -> float:
    """The resident memory of a process, by its number or as "self", MiB."""
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def read_rows(state: Path | None) -> list[dict[str, Any]]:
    """The rows of the state file; a last line that was cut off in the middle is measured again."""
    if state is None or not state.exists():
        return []
    lines = state.read_text().split("\n")
    if lines[-1]:
        state.write_text("".join(f"{line}\n" for line in lines[:-1]))
    return [json.loads(line) for line in lines[:-1]]


def append_row(state: Path | None, row: dict[str, Any]) -> None:
    """Add a finished row to the state file, where there is one."""
    if state is not None:
        state.parent.mkdir(parents=True, exist_ok=True)
        with state.open("a") as file:
            file.write(json.dumps(row) + "\n")
