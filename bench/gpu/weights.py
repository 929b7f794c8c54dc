"""Time from fitted weights to a runner: compiled again, or put into the compiled form that is there."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch

from bench.gpu.attempt import NOT_RUN, Budget, attempt
from bench.gpu.engines import BACKENDS
from bench.gpu.workload import Workload
from bench.material.large_network import random_homogenizer
from deploy.backends.protocol import Backend, load_backend

REPEATS = 5
BUILD_S = 20.0  # of all repeats together
NO_REFIT = "recald builds no engine that can be refitted: the weights are inputs"

Row = dict[str, Any]
T = TypeVar("T")


def measure_weights(workload: Workload, budget: Budget) -> Iterator[Row]:
    """Yield a row for each of recald's GPU backends."""
    for engine in BACKENDS:
        row: Row = {"size": workload.size, "engine": engine}
        with attempt(f"weights, {engine}", row):
            budget.require(BUILD_S)
            backend = load_backend(engine)
            backend.check_device()
            row |= _times(backend, workload)
        yield row


def _times(backend: Backend, workload: Workload) -> Row:
    """Return median seconds over several homogenizers."""
    example = torch.zeros(1, *workload.shape)
    rounds = []
    for seed in range(REPEATS):
        homogenizer = random_homogenizer(workload.shape, seed)
        compiled, compile_s = _timed(partial(backend.compile, homogenizer, example))
        rounds.append({"compile_s": compile_s, "load_s": _load(backend, compiled)})
    exchanged = [_exchange(backend, workload, seed, compiled) for seed in range(REPEATS)]
    return {"rebuild": _medians(rounds), "exchange": _medians(exchanged), "refit": {NOT_RUN: NO_REFIT}}


def _exchange(backend: Any, workload: Workload, seed: int, compiled: bytes) -> dict[str, float]:
    homogenizer = random_homogenizer(workload.shape, seed)
    exchanged, weights_s = _timed(partial(backend.with_weights_of, homogenizer, compiled))
    return {"weights_s": weights_s, "load_s": _load(backend, exchanged)}


def _load(backend: Backend, compiled: bytes) -> float:
    runner, seconds = _timed(partial(backend.load, compiled, threads=1))
    runner.close()
    return seconds


def _timed(call: Callable[[], T]) -> tuple[T, float]:
    began = time.perf_counter()
    result = call()
    return result, time.perf_counter() - began


def _medians(rounds: list[dict[str, float]]) -> dict[str, float]:
    return {name: float(np.median([times[name] for times in rounds])) for name in rounds[0]}
