"""Latency and error of one frame, from host memory to the result in host memory; the engines take turns."""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch

from bench.gpu.attempt import Budget, attempt, log_progress, ran
from bench.gpu.engines import ENGINES, SLOW_TO_COMPILE, RunnerPair, free_memory, open_pair
from bench.gpu.workload import CHAINED, HOMOGENIZER, NETWORK, Workload
from bench.report import percentiles
from deploy.model.program import relative_error

SLOW_COMPILE_S = 60.0  # of a slow engine, for one size and precision
OPENING_S = 12.0  # of all other engines together

Row = dict[str, Any]
Times = dict[str, list[float]]  # s, by the name of the call


def measure_latency(workload: Workload, precision: str, seconds: float, budget: Budget, reserve: float) -> list[Row]:
    """Return a row for each engine; a slow one does not run where less than `reserve` seconds would be left."""
    rows: dict[str, Row] = {e: {"size": workload.size, "precision": precision, "engine": e} for e in ENGINES}
    with ExitStack() as closing:
        pairs = {}
        for engine, row in rows.items():
            with attempt(f"{engine}, {workload.size}, {precision}", row):
                budget.require(OPENING_S + seconds + (SLOW_COMPILE_S + reserve if engine in SLOW_TO_COMPILE else 0))
                began = time.perf_counter()
                pair = open_pair(closing, engine, workload, precision)
                row |= {"ready_s": time.perf_counter() - began, "error": _errors(pair, workload)}
                pairs[engine] = pair
        log_progress(f"{workload.size}, {precision}: {', '.join(pairs)} in turns")
        for engine, times in _run_in_turns(pairs, workload, seconds, rows).items():
            rows[engine] |= _summary(times)
    free_memory()
    return list(rows.values())


def _run_in_turns(
    pairs: Mapping[str, RunnerPair], workload: Workload, seconds: float, rows: Mapping[str, Row]
) -> dict[str, Times]:
    """Run each frame in all engines, so that a slow phase of the machine affects all alike; return their times."""
    times: dict[str, Times] = {engine: {name: [] for name in pair.calls()} for engine, pair in pairs.items()}
    end = time.perf_counter() + seconds
    for frame in itertools.cycle(workload.frames):
        for engine in (name for name in pairs if ran(rows[name])):
            with attempt(engine, rows[engine]):
                _run_frame(pairs[engine], frame, times[engine])
        if time.perf_counter() >= end:
            return {engine: calls for engine, calls in times.items() if ran(rows[engine])}
    raise AssertionError("frames never end")


def _run_frame(pair: RunnerPair, frame: np.ndarray, times: Times) -> None:
    for name, call in pair.calls().items():
        began = time.perf_counter()
        call(frame)
        times[name].append(time.perf_counter() - began)


def _summary(times: Times) -> Row:
    """Return percentiles, and two ratios to the time of Φ alone.

    `share` is the time of ρ alone, `added` is the time by which a chained frame takes longer than Φ alone.
    """
    homogenizer, network, chained = (float(np.median(times[name])) for name in (HOMOGENIZER, NETWORK, CHAINED))
    shares = {"share": homogenizer / network, "added": chained / network - 1}
    return {name: percentiles(seconds) for name, seconds in times.items()} | shares


def _errors(pair: RunnerPair, workload: Workload) -> dict[str, float]:
    """Return the relative errors on all frames against the eager networks in float32 on the CPU."""
    calls = pair.calls()
    return {
        name: relative_error(torch.from_numpy(np.concatenate([calls[name](f) for f in workload.frames])), expected)
        for name, expected in workload.expected.items()
    }
