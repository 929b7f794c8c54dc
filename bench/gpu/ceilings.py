"""What the card does at best: products of large matrices, copies within its memory, and to and from the processor's."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from bench.gpu.attempt import attempt
from deploy.model.precision import PRECISIONS

MEMORY = "memory"
TO_CARD, FROM_CARD = "to the card", "from the card"
TERAFLOPS, GIGABYTES = "teraflops", "gigabytes_per_second"
SIDE = 8192  # of the matrices: far more work than it takes to launch it
COPIED = 2**28  # float32 numbers, 1 GiB: many times any cache
WARM_UPS, REPEATS, AT_ONCE = 3, 5, 10
FRAME_REPEATS = 50

Row = dict[str, Any]


def measure_ceilings() -> Iterator[Row]:
    for name, precision in PRECISIONS.items():
        row: Row = {"what": name}
        with attempt(f"product, {name}", row):
            row[TERAFLOPS] = 2 * SIDE**3 / _product(precision.dtype) / 1e12
        yield row
    row = {"what": MEMORY}
    with attempt("copy within the card", row):
        row[GIGABYTES] = 2 * 4 * COPIED / _copy() / 1e9  # read and written
    yield row


def measure_copies(shape: tuple[int, int, int]) -> Iterator[Row]:
    """One frame of this shape there, and one back, from and to pinned and pageable memory."""
    for direction in (TO_CARD, FROM_CARD):
        for pinned in (True, False):
            row: Row = {"size": f"{shape[1]}x{shape[2]}", "direction": direction, "pinned": pinned}
            with attempt(f"copy {row}", row):
                seconds = _frame_copy(shape, direction == TO_CARD, pinned)
                row |= {"ms": 1e3 * seconds, GIGABYTES: 4 * math.prod(shape) / seconds / 1e9}
            yield row


def _product(dtype: torch.dtype) -> float:
    """Seconds for one, on random numbers: zeros take less power, and so less time."""
    left, right = (torch.randn(SIDE, SIDE).to(dtype).cuda() for _ in range(2))
    return _seconds(lambda: torch.mm(left, right), AT_ONCE, REPEATS)


def _copy() -> float:
    source, target = (torch.empty(COPIED, device="cuda") for _ in range(2))
    source.fill_(1.0)
    return _seconds(lambda: target.copy_(source), AT_ONCE, REPEATS)


def _frame_copy(shape: tuple[int, int, int], there: bool, pinned: bool) -> float:
    on_card, here = torch.empty(shape, device="cuda"), torch.empty(shape, pin_memory=pinned)
    here.fill_(1.0)
    source, target = (here, on_card) if there else (on_card, here)
    return _seconds(lambda: target.copy_(source, non_blocking=True), 1, FRAME_REPEATS)


def _seconds(call: Callable[[], object], at_once: int, repeats: int) -> float:
    """The median for one call, of `repeats` times that so many were waited for at once."""
    taken = []
    for _ in range(WARM_UPS + repeats):
        torch.cuda.synchronize()
        began = time.perf_counter()
        for _ in range(at_once):
            call()
        torch.cuda.synchronize()
        taken.append((time.perf_counter() - began) / at_once)
    return float(np.median(taken[WARM_UPS:]))
