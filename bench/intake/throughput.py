"""Frames a second and age of frames, by reader, transport and load; the readers take turns."""

from __future__ import annotations

import tempfile
from itertools import count, product
from statistics import median
from typing import Any

from bench.intake.reader_process import Reading, measure_in_process
from bench.intake.readers import BARE, BARE_KEPT, READERS, is_installed
from bench.intake.sender import HEIGHT, WIDTH
from bench.report import percentiles
from daemon.demo.processes import free_port

TRANSPORTS = ("ipc", "tcp")
LIMIT, CAMERA = "limit", "camera"
RATES = {LIMIT: 0.0, CAMERA: 30.0}  # frames/s of the sender; 0 is as fast as it can
ROUNDS = 9  # turns of each reader, so that a slow phase of the machine affects all alike
COMPARED_WITH = {"bare": BARE, "bare_kept": BARE_KEPT}
FRAME_GIGABYTES = HEIGHT * WIDTH * 3 / 1e9


def measure_throughput(seconds: float) -> list[dict[str, Any]]:
    """Measure each reader for `seconds` in all, under each load and over each transport; return a row for each."""
    cases = list(product(RATES, TRANSPORTS, READERS))
    readings: dict[tuple[str, str, str], list[Reading]] = {case: [] for case in cases}
    with tempfile.TemporaryDirectory(prefix="recald-bench-", dir="/tmp") as folder:
        numbers = count()
        for _, case in product(range(ROUNDS), cases):
            load, transport, reader = case
            if is_installed(reader):
                number = next(numbers)  # of a new address for each
                endpoint = f"ipc://{folder}/{number}" if transport == "ipc" else f"tcp://127.0.0.1:{free_port()}"
                readings[case].append(measure_in_process(reader, endpoint, RATES[load], seconds / ROUNDS))
    return [_row(case, readings) for case in cases]


def _row(case: tuple[str, str, str], readings: dict[tuple[str, str, str], list[Reading]]) -> dict[str, Any]:
    load, transport, reader = case
    own = readings[case]
    row: dict[str, Any] = {"load": load, "transport": transport, "reader": reader, "installed": bool(own)}
    if not own:
        return row
    bare = {f"of_{key}": _rate(own) / _rate(readings[load, transport, name]) for key, name in COMPARED_WITH.items()}
    return row | _summary(own) | bare


def _rate(readings: list[Reading]) -> float:
    """Return the median: now and then a whole round is slow, whichever reader it is of."""
    return median(reading.rate for reading in readings)


def _summary(readings: list[Reading]) -> dict[str, Any]:
    frames = sum(reading.frames for reading in readings)
    return {
        "frames_per_second": _rate(readings),
        "gigabytes_per_second": _rate(readings) * FRAME_GIGABYTES,
        "rounds": [reading.rate for reading in readings],
        "frames": frames,
        "skipped": sum(reading.skipped for reading in readings),
        "cpu_ms": 1e3 * sum(reading.cpu_seconds for reading in readings) / frames,
        "page_faults": sum(reading.page_faults for reading in readings) / frames,
        "age": percentiles([age for reading in readings for age in reading.ages]),
    }
