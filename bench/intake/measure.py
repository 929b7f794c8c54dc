"""Whether frames are received as fast as ZeroMQ delivers them, and what is copied on the way to the model."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

import cv2
import zmq

from bench.intake import pixels as intake_pixels
from bench.intake import throughput as intake_throughput
from bench.intake.readers import RECALD
from bench.intake.sender import HEIGHT, WIDTH
from bench.intake.throughput import CAMERA, LIMIT
from bench.report import show

CLAIM = 0.9  # of the bare loop's frames a second

COLUMNS = {  # of the first table, and where their values are
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
    throughput = intake_throughput.measure(args.seconds)
    copies = intake_pixels.measure_copies()
    cost = intake_pixels.measure_cost(args.seconds)
    _tables(throughput, copies, cost)
    return {"settings": _settings(args.seconds), "throughput": throughput, "copies": copies, "cost": cost}


def _add_to_path(folder: Path) -> None:
    """For this process and for the senders that it starts."""
    sys.path.append(str(folder.resolve()))
    known = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [known, str(folder.resolve())]))


def _settings(seconds: float) -> dict[str, Any]:
    return {
        "seconds": seconds,
        "rounds": intake_throughput.ROUNDS,
        "frame": f"{WIDTH}x{HEIGHT} rgb8",
        "camera_fps": intake_throughput.RATES[CAMERA],
        "input": f"{intake_pixels.MODEL_SIDE}x{intake_pixels.MODEL_SIDE}",
        "pyzmq": zmq.__version__,
        "libzmq": zmq.zmq_version(),
        "opencv": cv2.__version__,
        "opencv_threads": cv2.getNumThreads(),
    }


def _tables(throughput: list[dict[str, Any]], copies: list[dict[str, Any]], cost: list[dict[str, Any]]) -> None:
    show(f"raw {WIDTH}x{HEIGHT} frames received", list(COLUMNS), [_throughput_cells(row) for row in throughput])
    for row in throughput:
        if (row["reader"], row["load"]) == (RECALD, LIMIT):
            verdict = "reached" if row["of_bare"] >= CLAIM else "not reached"
            print(f"{row['transport']}: {row['of_bare']:.2f} of the bare loop, {CLAIM:g} is {verdict};", end=" ")
            print(f"{row['of_bare_kept']:.2f} of a bare loop that keeps memory as recald does")
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
