"""Drift checks take at most 5 % of a core at 30 frames/s of 224x224, and delay no frame."""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from bench.material.camera import FPS, SENSOR
from bench.material.daemon_run import DIGITS_SEED, DaemonRun, daemon_run, light_digits
from bench.provenance import DEPLOYMENT
from bench.report import percentiles, show
from daemon.demo.datasets import Dataset

CODE = (*DEPLOYMENT, "bench/material/*.py", "bench/watch.py", "daemon/recalibration/*.py", "daemon/worker/*.py")

SIZE = 224  # pixels a side
FIT_FRAMES = 128  # the fewest allowed; no fit is made
ANY_SCORE = 1000.0  # the network was trained at another size: no frame of it is to count as drifted
LEARN_TIMEOUT_S = 300.0
WARM_UP_S = 5.0
CASES = {"with checks": "1s", "without checks": "1h"}  # drift.interval


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seconds", type=float, default=60.0, help="of each run (%(default)g)")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each case, in turns (%(default)d)")


def measure(args: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="recald-bench-") as folder:
        digits = light_digits(Path(folder) / "light.safetensors")
        rows = [_run(digits, case, args.seconds) for _ in range(args.rounds) for case in CASES]
    columns = ("case", "checks", "core_share", "p50_ms", "p99_ms", "max_ms", "lost")
    show(f"{FPS:g} frames/s of {SIZE}x{SIZE}", columns, [[row[column] for column in columns] for row in rows])
    settings = {"size": SIZE, "fps": FPS, "seconds": args.seconds, "rounds": args.rounds, "intervals": CASES}
    return {"seeds": {"digits": DIGITS_SEED}, "settings": settings, "rows": rows}


def _run(digits: Dataset, case: str, seconds: float) -> dict[str, Any]:
    """Return what one run takes once the sensor's baseline is learned."""
    drift = {"interval": CASES[case], "threshold": ANY_SCORE, "learn": "1s"}
    with daemon_run(digits, SIZE, FIT_FRAMES, drift=drift) as run:
        run.camera.run_for(WARM_UP_S)
        if case == "with checks":
            run.camera.run_until(lambda: _learned(run), LEARN_TIMEOUT_S)
        checks, spent, began = _checks(run), _worker_s(run), time.monotonic()
        answers = run.camera.run_for(seconds)
        elapsed = time.monotonic() - began
        row = {"checks": _checks(run) - checks, "core_share": (_worker_s(run) - spent) / elapsed}
        run.camera.settle()
        lost = run.frame_counts()["lost"]
    return {"case": case, "lost": lost} | row | percentiles([answer.latency for answer in answers])


def _learned(run: DaemonRun) -> bool:
    return run.scrape().total("recald_baseline_progress_ratio", sensor=SENSOR) >= 1


def _checks(run: DaemonRun) -> int:
    return int(run.scrape().total("recald_drift_checks_total", sensor=SENSOR, result="done"))


def _worker_s(run: DaemonRun) -> float:
    """Return the processor time of the processes that check, in seconds."""
    times = [child.cpu_times() for child in psutil.Process(run.daemon.process.pid).children(recursive=True)]
    return sum(time.user + time.system for time in times)
