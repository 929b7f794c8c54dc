"""Write results as JSON, show them as tables, and summarise times."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from deploy.files import write_atomically

TABLE_WIDTH = 160  # characters: tables are wider than most terminals that a log is written from


def write(name: str, results: Mapping[str, Any], path: Path, provenance: Mapping[str, Any]) -> None:
    """Write the results of a bench with the time, the commit, the machine and the digest of the code."""
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    document = {"bench": name, "measured_at": now, **provenance, **results}
    write_atomically(path, (json.dumps(document, indent=1) + "\n").encode())


def show(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a table; the first column is aligned to the left, the others to the right."""
    table = Table(title=title)
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left")
    for row in rows:
        table.add_row(*(f"{cell:.2f}" if isinstance(cell, float) else str(cell) for cell in row))
    Console(width=TABLE_WIDTH, markup=False, emoji=False).print(table)


def show_rows(title: str, columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
    """Print the named values of each row as a table; a missing value is shown as a dash."""
    show(title, columns, [["-" if row.get(c) is None else row[c] for c in columns] for row in rows])


def print_row(row: Mapping[str, Any]) -> None:
    """Print a finished row on one line, so that a long run shows how far it is."""
    cells = (f"{name} {value:.2f}" if isinstance(value, float) else str(value) for name, value in row.items())
    print(", ".join(cells), flush=True)


def percentiles(seconds: Sequence[float] | np.ndarray) -> dict[str, float | int | None]:
    """Return the count, and p50, p99 and maximum in milliseconds; None for these without any value."""
    if len(seconds) == 0:
        return {"count": 0, "p50_ms": None, "p99_ms": None, "max_ms": None}
    p50, p99, top = np.percentile(np.asarray(seconds) * 1e3, [50, 99, 100])
    return {"count": len(seconds), "p50_ms": float(p50), "p99_ms": float(p99), "max_ms": float(top)}


def p99_ratio(these: np.ndarray, those: np.ndarray) -> float | None:
    """Return the p99 of `these` over that of `those`; None where either is empty."""
    if not (len(these) and len(those)):
        return None
    return float(np.percentile(these, 99) / np.percentile(those, 99))


def resident_mib(process: int | str) -> float:
    """Return the resident memory of a process, given by its number or as "self", in MiB."""
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20
