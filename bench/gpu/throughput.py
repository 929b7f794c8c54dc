"""Frames a second through both networks, by one thread and by two, and the roofline: what the card allows at most."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import cache
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bench.gpu.attempt import Budget, attempt, log_progress
from bench.gpu.ceilings import GIGABYTES, MEMORY, TERAFLOPS, TO_CARD
from bench.gpu.engines import RunnerPair, free_memory, open_pair
from bench.gpu.workload import CHAINED, HOMOGENIZER, NETWORK, Workload
from bench.material.large_network import count_work
from deploy.model.precision import FLOAT32, PRECISIONS

ENGINE = "cuda"
ONE_THREAD, TWO_THREADS = "one_thread", "two_threads"
THREADS = 2  # one frame is copied while another is computed
OPENING_S = 10.0  # loading what was compiled for the latencies
FLOAT32_BYTES = 4

aten = torch.ops.aten
PRODUCTS = (aten.convolution.default, aten.addmm.default)

Row = dict[str, Any]


def measure_throughput(
    workload: Workload, precision: str, seconds: float, budget: Budget, measured: Sequence[Row]
) -> Row:
    """Return the rates, each also as a share of the roofline by `measured`, the rows of ceilings and copies."""
    row: Row = {"size": workload.size, "precision": precision, "engine": ENGINE}
    log_progress(f"throughput, {workload.size}, {precision}")
    with attempt("throughput", row):
        budget.require(OPENING_S + THREADS * seconds)
        row |= _rates(workload, precision, seconds)
        limits = row["roofline"] = {}
        with attempt("roofline", limits):
            limits |= roofline(workload, precision, measured)
            for threads in (ONE_THREAD, TWO_THREADS):
                row[threads]["share"] = row[threads]["frames_per_second"] / limits["frames_per_second"]
    return row


def _rates(workload: Workload, precision: str, seconds: float) -> Row:
    with ExitStack() as closing:
        pairs = [open_pair(closing, ENGINE, workload, precision) for _ in range(THREADS)]
        used = {ONE_THREAD: pairs[:1], TWO_THREADS: pairs}
        rates = {name: {"frames_per_second": _rate(those, workload, seconds)} for name, those in used.items()}
    free_memory()
    return rates


def _rate(pairs: Iterable[RunnerPair], workload: Workload, seconds: float) -> float:
    """Return the frames a second of all pairs together, each in a thread of its own."""
    with ThreadPoolExecutor(THREADS) as threads:
        end = time.perf_counter() + seconds
        working = [threads.submit(_rate_of_pair, pair, workload, end) for pair in pairs]
        return sum(future.result() for future in working)


def _rate_of_pair(pair: RunnerPair, workload: Workload, end: float) -> float:
    call, began = pair.calls()[CHAINED], time.perf_counter()
    for served, frame in enumerate(itertools.cycle(workload.frames), start=1):
        call(frame)
        now = time.perf_counter()
        if now >= end:
            return served / (now - began)
    raise AssertionError("frames never end")


def roofline(workload: Workload, precision: str, measured: Sequence[Row]) -> Row:
    """Return the least milliseconds of a frame through both networks by each limit, and the frames a second.

    Limits are arithmetic, the card's memory, and the copy of the frame from the host. `measured` are the rows of
    ceilings and copies. Raises LookupError where a row that is needed is not among them.
    """
    used, counted = {HOMOGENIZER: FLOAT32, NETWORK: precision}, _count(workload)
    operations = {part: 2 * counted[part]["multiplications"] for part in used}
    frame_bytes = FLOAT32_BYTES * math.prod(workload.shape)
    moved = sum(counted[part]["numbers"] * PRECISIONS[name].dtype.itemsize for part, name in used.items())
    seconds = {
        "arithmetic": sum(operations[p] / 1e12 / _found(measured, TERAFLOPS, what=name) for p, name in used.items()),
        "memory": moved / 1e9 / _found(measured, GIGABYTES, what=MEMORY),
        "host": frame_bytes / 1e9 / _found(measured, GIGABYTES, size=workload.size, direction=TO_CARD, pinned=True),
    }
    limit = max(seconds, key=lambda name: seconds[name])
    times = {f"{name}_ms": 1e3 * value for name, value in seconds.items()}
    return {"counted": counted, **times, "limit": limit, "frames_per_second": 1 / seconds[limit]}


@cache
def _count(workload: Workload) -> dict[str, dict[str, int]]:
    """Count for each network the multiplications of one frame and the numbers that its products read and write.

    Each convolution and the last layer read input and weights once and write their output once, which assumes that
    all operations between two of them are fused.
    """
    parts: dict[str, nn.Module] = {HOMOGENIZER: workload.homogenizer, NETWORK: workload.network}
    return {
        part: count_work(module, workload.shape) | {"numbers": _count_numbers(module, workload.shape)}
        for part, module in parts.items()
    }


def _found(measured: Sequence[Row], key: str, **wanted: object) -> float:
    for row in measured:
        if key in row and wanted.items() <= row.items():
            return float(row[key])
    raise LookupError(f"no {key} of {wanted} was measured")


def _count_numbers(module: nn.Module, shape: tuple[int, int, int]) -> int:
    with _Traffic() as traffic, torch.no_grad():
        module(torch.zeros(1, *shape))
    return traffic.numbers


class _Traffic(TorchDispatchMode):
    """Counts the numbers that convolutions and matrix products read and write."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = function(*args, **(kwargs or {}))
        if function in PRODUCTS:
            tensors = (leaf for leaf in tree_leaves((args, output)) if isinstance(leaf, torch.Tensor))
            self.numbers += sum(tensor.numel() for tensor in tensors)
        return output
