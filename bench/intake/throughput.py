"""Frames a second and their age, of each reader, in turns."""

from __future__ import annotations

import tempfile
from itertools import count, product
from pathlib import Path
from statistics import median
from typing import Any

from bench.intake.readers import BARE, BARE_KEPT, READERS, installed
from bench.intake.sender import HEIGHT, WIDTH
from bench.intake.turn import Turn, run_turn
from bench.report import percentiles
from daemon.demo.service import free_port

TRANSPORTS = ("ipc", "tcp")
LIMIT, CAMERA = "limit", "camera"
RATES = {LIMIT: 0.0, CAMERA: 30.0}  # frames a second; 0: as fast as the sender can
ROUNDS = 9  # turns of each reader, so that a slow phase of the machine hits all alike
BASES = {"bare": BARE, "bare_kept": BARE_KEPT}  # what rates are compared with
GIGABYTES = HEIGHT * WIDTH * 3 / 1e9  # of a frame


def measure(seconds: float) -> list[dict[str, Any]]:
    cases = list(product(RATES, TRANSPORTS, READERS))
    turns: dict[tuple[str, str, str], list[Turn]] = {case: [] for case in cases}
    with tempfile.TemporaryDirectory(prefix="recald-bench-", dir="/tmp") as folder:
        numbers = count()
        for _, case in product(range(ROUNDS), cases):
            load, transport, reader = case
            if installed(reader):
                endpoint = _endpoint(transport, Path(folder), next(numbers))
                turns[case].append(run_turn(reader, endpoint, RATES[load], seconds / ROUNDS))
    rows = []
    for case, own in turns.items():
        row: dict[str, Any] = dict(zip(("load", "transport", "reader"), case, strict=True))
        row["installed"] = bool(own)
        if own:
            bare = {f"of_{key}": turns[case[0], case[1], name] for key, name in BASES.items()}
            row |= _summary(own) | {key: _rate(own) / _rate(other) for key, other in bare.items()}
        rows.append(row)
    return rows


def _endpoint(transport: str, folder: Path, number: int) -> str:
    return f"ipc://{folder}/{number}" if transport == "ipc" else f"tcp://127.0.0.1:{free_port()}"


def _rate(turns: list[Turn]) -> float:
    """The median: now and then a turn is slow from start to end, whatever reads."""
    return median(turn.rate for turn in turns)


def _summary(turns: list[Turn]) -> dict[str, Any]:
    frames = sum(turn.frames for turn in turns)
    return {
        "frames_per_second": _rate(turns),
        "gigabytes_per_second": _rate(turns) * GIGABYTES,
        "rounds": [turn.rate for turn in turns],
        "frames": frames,
        "skipped": sum(turn.skipped for turn in turns),
        "cpu_ms": 1e3 * sum(turn.cpu_seconds for turn in turns) / frames,
        "page_faults": sum(turn.page_faults for turn in turns) / frames,
        "age": percentiles([age for turn in turns for age in turn.ages]),
    }
