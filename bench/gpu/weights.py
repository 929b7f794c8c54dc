"""How long a homogenizer takes from fitted weights to a runner: compiled anew, or put into what is there."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch

from bench.gpu.attempt import NOT_RUN, Budget, attempt
from bench.gpu.engines import BACKENDS
from bench.gpu.material import Material
from bench.overhead import some_homogenizer
from deploy.backends.protocol import Backend, load_backend

REPEATS = 5
BUILD_S = 20.0  # for all repeats
NO_REFIT = "recald builds no engine that can be refitted: the weights are inputs"

Row = dict[str, Any]
Made = TypeVar("Made")


def measure_weights(material: Material, budget: Budget) -> Iterator[Row]:
    for engine in BACKENDS:
        row: Row = {"size": material.size, "engine": engine}
        with attempt(f"weights, {engine}", row):
            budget.require(BUILD_S)
            backend = load_backend(engine)
            backend.check_device()
            row |= _ways(backend, material)
        yield row


def _ways(backend: Backend, material: Material) -> Row:
    """Seconds, the medians over homogenizers."""
    example = torch.zeros(1, *material.shape)
    rounds = []
    for seed in range(REPEATS):
        homogenizer = some_homogenizer(material.shape, seed)
        compiled, compile_s = _timed(partial(backend.compile, homogenizer, example))
        rounds.append({"compile_s": compile_s, "load_s": _load(backend, compiled)})
    exchanged = [_exchange(backend, material, seed, compiled) for seed in range(REPEATS)]
    return {"rebuild": _medians(rounds), "exchange": _medians(exchanged), "refit": {NOT_RUN: NO_REFIT}}


def _exchange(backend: Any, material: Material, seed: int, compiled: bytes) -> dict[str, float]:
    homogenizer = some_homogenizer(material.shape, seed)
    exchanged, weights_s = _timed(partial(backend.with_weights_of, homogenizer, compiled))
    return {"weights_s": weights_s, "load_s": _load(backend, exchanged)}


def _load(backend: Backend, compiled: bytes) -> float:
    runner, seconds = _timed(partial(backend.load, compiled, threads=1))
    runner.close()
    return seconds


def _timed(call: Callable[[], Made]) -> tuple[Made, float]:
    began = time.perf_counter()
    made = call()
    return made, time.perf_counter() - began


def _medians(rounds: list[dict[str, float]]) -> dict[str, float]:
    return {name: float(np.median([one[name] for one in rounds])) for name in rounds[0]}
