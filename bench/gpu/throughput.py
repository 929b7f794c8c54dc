"""Frames a second through both networks, back to back by one thread and by two, each with runners of its own."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

from bench.gpu.attempt import Budget, attempt, say
from bench.gpu.engines import Pair, free_memory, open_pair
from bench.gpu.material import Material
from bench.gpu.roofline import roofline

ENGINE = "cuda"
ONE, TWO = "one_thread", "two_threads"
THREADS = 2  # one frame is copied while another is computed
OPENING_S = 10.0  # what was compiled for the latencies is loaded again

Row = dict[str, Any]


def measure_throughput(
    material: Material, precision: str, seconds: float, budget: Budget, measured: Sequence[Row]
) -> Row:
    """The rates, each also as a share of what the card allows at most by the ceilings and copies `measured`."""
    row: Row = {"size": material.size, "precision": precision, "engine": ENGINE}
    say(f"throughput, {material.size}, {precision}")
    with attempt("throughput", row):
        budget.require(OPENING_S + THREADS * seconds)
        row |= _rates(material, precision, seconds)
        limits = row["roofline"] = {}
        with attempt("roofline", limits):
            limits |= roofline(material, precision, measured)
            for working in (ONE, TWO):
                row[working]["share"] = row[working]["frames_per_second"] / limits["frames_per_second"]
    return row


def _rates(material: Material, precision: str, seconds: float) -> Row:
    with ExitStack() as closing:
        pairs = [open_pair(closing, ENGINE, material, precision) for _ in range(THREADS)]
        working = {ONE: pairs[:1], TWO: pairs}
        rates = {name: {"frames_per_second": _rate(those, material, seconds)} for name, those in working.items()}
    free_memory()
    return rates


def _rate(pairs: Iterable[Pair], material: Material, seconds: float) -> float:
    with ThreadPoolExecutor(THREADS) as threads:
        end = time.perf_counter() + seconds
        working = [threads.submit(_work, pair, material, end) for pair in pairs]
        return sum(future.result() for future in working)


def _work(pair: Pair, material: Material, end: float) -> float:
    """Frames a second until then."""
    call, began = pair.calls()["chained"], time.perf_counter()
    for served, frame in enumerate(itertools.cycle(material.frames), start=1):
        call(frame)
        now = time.perf_counter()
        if now >= end:
            return served / (now - began)
    raise AssertionError("frames never end")
