"""One frame from the processor's memory to the result there, by each engine in turns, and how exact it is."""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch

from bench.gpu.attempt import Budget, attempt, ran, say
from bench.gpu.engines import ENGINES, SLOW, Pair, free_memory, open_pair
from bench.gpu.material import HOMOGENIZER, NETWORK, Material
from bench.report import percentiles
from deploy.model.program import relative_error

SLOW_S = 60.0  # compiling ρ and Φ, for one size and precision
OPENING_S = 12.0  # all the others together

Row = dict[str, Any]
Taken = dict[str, list[float]]  # s, by what was called


def measure_latency(material: Material, precision: str, seconds: float, budget: Budget, after: float) -> list[Row]:
    """A row for each engine; slow ones are left out where less than `after` seconds would be left."""
    rows: dict[str, Row] = {e: {"size": material.size, "precision": precision, "engine": e} for e in ENGINES}
    with ExitStack() as closing:
        pairs = {}
        for engine, row in rows.items():
            with attempt(f"{engine}, {material.size}, {precision}", row):
                budget.require(OPENING_S + seconds + (SLOW_S + after if engine in SLOW else 0))
                began = time.perf_counter()
                pair = open_pair(closing, engine, material, precision)
                row |= {"ready_s": time.perf_counter() - began, "error": _errors(pair, material)}
                pairs[engine] = pair
        say(f"{material.size}, {precision}: {', '.join(pairs)} in turns")
        for engine, taken in _in_turns(pairs, material, seconds, rows).items():
            rows[engine] |= _summary(taken)
    free_memory()
    return list(rows.values())


def _in_turns(
    pairs: Mapping[str, Pair], material: Material, seconds: float, rows: Mapping[str, Row]
) -> dict[str, Taken]:
    """Engine by engine, frame by frame, so that a slow phase of the machine hits all alike."""
    taken: dict[str, Taken] = {engine: {name: [] for name in pair.calls()} for engine, pair in pairs.items()}
    end = time.perf_counter() + seconds
    for frame in itertools.cycle(material.frames):
        for engine in (name for name in pairs if ran(rows[name])):
            with attempt(engine, rows[engine]):
                _turn(pairs[engine], frame, taken[engine])
        if time.perf_counter() >= end:
            return {engine: calls for engine, calls in taken.items() if ran(rows[engine])}
    raise AssertionError("frames never end")


def _turn(pair: Pair, frame: np.ndarray, taken: Taken) -> None:
    for name, call in pair.calls().items():
        began = time.perf_counter()
        call(frame)
        taken[name].append(time.perf_counter() - began)


def _summary(taken: Taken) -> Row:
    """`share`: what ρ takes alone, `added`: what it makes a chained frame longer, both to what Φ takes alone."""
    homogenizer, network, chained = (float(np.median(taken[name])) for name in (HOMOGENIZER, NETWORK, "chained"))
    shares = {"share": homogenizer / network, "added": chained / network - 1}
    return {name: percentiles(seconds) for name, seconds in taken.items()} | shares


def _errors(pair: Pair, material: Material) -> dict[str, float]:
    """On all frames, against the eager networks in float32 on the processor."""
    calls = pair.calls()
    return {
        name: relative_error(torch.from_numpy(np.concatenate([calls[name](f) for f in material.frames])), expected)
        for name, expected in material.expected.items()
    }
