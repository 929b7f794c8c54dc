"""Latency of frames while another process fits on the same GPU."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from bench.gpu.attempt import Budget, attempt, log_progress
from bench.gpu.engines import RunnerPair, open_pair
from bench.gpu.fit import DRAWS, NETWORKS
from bench.gpu.fit_process import READY
from bench.gpu.workload import Workload
from bench.report import p99_ratio, percentiles
from daemon.worker.client import WORKER_ENVIRONMENT
from deploy.model.precision import FLOAT32

ENGINE = "cuda"
FITS = 4
PAUSE_S = 1.0  # between two fits, and before the first: these frames are the comparison
OPENING_S = 60.0
RATES = (None, 30.0)  # frames a second; None: back to back

Interval = tuple[float, float]


def measure_beside_fit(data: Path, workload: Workload, budget: Budget) -> Iterator[dict[str, Any]]:
    """Yield a row for each rate of frames."""
    opened: dict[str, Any] = {}
    log_progress("frames beside a fit")
    with attempt("frames beside a fit", opened), ExitStack() as closing:
        budget.require(OPENING_S)
        process = closing.enter_context(_fit_process(data))  # it loads its libraries meanwhile
        pair = open_pair(closing, ENGINE, workload, FLOAT32)
        _wait_until_ready(process)
        for rate in RATES:
            row = {"size": workload.size, "engine": ENGINE, "network": NETWORKS[0], "rate": rate}
            with attempt(f"frames beside a fit, rate {rate}", row):
                row |= _serve_beside_fits(process, pair, workload.frames, rate)
            yield row
    if opened:
        yield opened


def _serve_beside_fits(
    process: subprocess.Popen[str], pair: RunnerPair, frames: list[np.ndarray], rate: float | None
) -> dict[str, Any]:
    fits: list[Interval] = []
    asking = threading.Thread(target=_ask_for_fits, args=(process, fits))
    asking.start()
    sent, latency = [], []
    for frame in itertools.cycle(frames):
        began = time.monotonic()
        pair.network.run_after(pair.homogenizer, frame)
        sent.append(began)
        latency.append(time.monotonic() - began)
        if not asking.is_alive():
            break
        if rate is not None:
            time.sleep(max(0.0, 1 / rate - latency[-1]))
    return _compared(np.array(sent), np.array(latency), fits)


def _compared(sent: np.ndarray, latency: np.ndarray, fits: list[Interval]) -> dict[str, Any]:
    ended = sent + latency
    during = np.zeros(len(sent), bool)
    for began, end in fits:
        during |= (ended >= began) & (sent <= end)
    return {
        "fit_seconds": [end - began for began, end in fits],
        "away": percentiles(latency[~during]),
        "during": percentiles(latency[during]) | {"p99_ratio": p99_ratio(latency[during], latency[~during])},
    }


def _ask_for_fits(process: subprocess.Popen[str], fits: list[Interval]) -> None:
    assert process.stdin is not None and process.stdout is not None
    for _ in range(FITS):
        time.sleep(PAUSE_S)
        process.stdin.write("fit\n")
        process.stdin.flush()
        began, end = map(float, process.stdout.readline().split())
        fits.append((began, end))
    time.sleep(PAUSE_S)


@contextmanager
def _fit_process(data: Path) -> Iterator[subprocess.Popen[str]]:
    arguments = ["--data", data, "--network", NETWORKS[0], "--draw", DRAWS[0]]
    command = [sys.executable, "-m", "bench.gpu.fit_process", *map(str, arguments)]
    environment = os.environ | WORKER_ENVIRONMENT
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def _wait_until_ready(process: subprocess.Popen[str]) -> None:
    """Raises RuntimeError where the process fails to start."""
    assert process.stdout is not None
    if process.stdout.readline().strip() != READY:
        raise RuntimeError("the process that fits did not start")
