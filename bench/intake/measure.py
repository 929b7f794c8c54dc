"""Raw frames arrive at 0.9 or more of the rate of the shortest ZeroMQ loop; 8 and 16 bit pixels are not copied."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

import cv2
import zmq

from bench.intake.copies import MODEL_SIDE, measure_copies, measure_cost
from bench.intake.readers import RECALD
from bench.intake.sender import HEIGHT, WIDTH
from bench.intake.throughput import CAMERA, LIMIT, RATES, ROUNDS, measure_throughput
from bench.report import show

CODE = ("daemon/metrics.py", "daemon/serving/*.py", "daemon/model/preprocess.py", "bench/intake/*.py")

MIN_BARE_RATIO = 0.9  # the claim: frames a second, of those of the bare loop

COLUMNS = {  # of the first table: title, and the key in a row or in its ages
    "reader": "reader",
    "transport": "transport",
    "load": "load",
    "frames/s": "frames_per_second",
    "GB/s": "gigabytes_per_second",
    "of bare": "of_bare",
    "of kept": "of_bare_kept",
    "skipped": "skipped",
    "CPU ms a frame": "cpu_ms",
    "page faults": "page_faults",
    "age p50 ms": "p50_ms",
    "age p99 ms": "p99_ms",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measured variant (%(default)g)")
    parser.add_argument(
        "--imagezmq", type=Path, help="folder of imagezmq: pip install --no-deps --target FOLDER imagezmq"
    )


def measure(args: argparse.Namespace) -> dict[str, Any]:
    if args.imagezmq is not None:
        _add_to_path(args.imagezmq)
    throughput = measure_throughput(args.seconds)
    copies, cost = measure_copies(), measure_cost(args.seconds)
    _show_tables(throughput, copies, cost)
    settings = _settings(args.seconds)
    return {"seeds": {"frames": 0}, "settings": settings, "throughput": throughput, "copies": copies, "cost": cost}


def _add_to_path(folder: Path) -> None:
    """Let this process and those that it starts import from the folder."""
    sys.path.append(str(folder.resolve()))
    known = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [known, str(folder.resolve())]))


def _settings(seconds: float) -> dict[str, Any]:
    return {
        "seconds": seconds,
        "rounds": ROUNDS,
        "frame": f"{WIDTH}x{HEIGHT} rgb8",
        "camera_fps": RATES[CAMERA],
        "input": f"{MODEL_SIDE}x{MODEL_SIDE}",
        "pyzmq": zmq.__version__,
        "libzmq": zmq.zmq_version(),
        "opencv": cv2.__version__,
        "opencv_threads": cv2.getNumThreads(),
    }


def _show_tables(throughput: list[dict[str, Any]], copies: list[dict[str, Any]], cost: list[dict[str, Any]]) -> None:
    show(f"raw {WIDTH}x{HEIGHT} frames received", list(COLUMNS), [_throughput_cells(row) for row in throughput])
    for row in throughput:
        if (row["reader"], row["load"]) == (RECALD, LIMIT):
            verdict = "reached" if row["of_bare"] >= MIN_BARE_RATIO else "not reached"
            of_bare = f"{row['of_bare']:.2f} of the bare loop, {MIN_BARE_RATIO:g} is {verdict}"
            kept = f"{row['of_bare_kept']:.2f} of a bare loop that keeps memory as recald does"
            print(f"{row['transport']}: {of_bare}; {kept}")
    names = ("encoding", "receiver", "pixels", "megabytes", "needed", "why")
    show("copies of a frame, socket to input", names, [[row[name] for name in names] for row in copies])
    stages = [(stage, key) for stage in ("decode", "preprocess") for key in ("p50_ms", "p99_ms")]
    show(
        "cost of a frame, ms",
        ("encoding", "size", "decode p50", "p99", "preprocess p50", "p99"),
        [[row["encoding"], row["size"], *(row[stage][key] for stage, key in stages)] for row in cost],
    )


def _throughput_cells(row: dict[str, Any]) -> list[object]:
    head = [row["reader"], row["transport"], row["load"]]
    if not row["installed"]:
        return [*head, "not installed", *["-"] * (len(COLUMNS) - 4)]
    return [{**row, **row["age"]}[key] for key in COLUMNS.values()]
