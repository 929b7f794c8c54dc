"""The card's limits: products of large matrices, copies within its memory, and copies to and from the host."""

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
MATRIX_SIDE = 8192  # far more work than the launch of a kernel takes
COPIED_FLOATS = 2**28  # 1 GiB: many times the size of any cache
WARM_UPS, REPEATS = 3, 5
BATCHED_CALLS = 10  # calls that are waited for together
FRAME_REPEATS = 50

Row = dict[str, Any]


def measure_ceilings() -> Iterator[Row]:
    """Yield a row for the products in each precision, and one for copies within the card."""
    for name, precision in PRECISIONS.items():
        row: Row = {"what": name}
        with attempt(f"product, {name}", row):
            row[TERAFLOPS] = 2 * MATRIX_SIDE**3 / _product(precision.dtype) / 1e12
        yield row
    row = {"what": MEMORY}
    with attempt("copy within the card", row):
        row[GIGABYTES] = 2 * 4 * COPIED_FLOATS / _copy() / 1e9  # read and written
    yield row


def measure_copies(shape: tuple[int, int, int]) -> Iterator[Row]:
    """Yield rows for the copy of one frame (C, H, W) to the card and back, with pinned and with pageable memory."""
    for direction in (TO_CARD, FROM_CARD):
        for pinned in (True, False):
            row: Row = {"size": f"{shape[1]}x{shape[2]}", "direction": direction, "pinned": pinned}
            with attempt(f"copy {row}", row):
                seconds = _frame_copy(shape, direction == TO_CARD, pinned)
                row |= {"ms": 1e3 * seconds, GIGABYTES: 4 * math.prod(shape) / seconds / 1e9}
            yield row


def _product(dtype: torch.dtype) -> float:
    """Return the seconds of one product of random matrices: zeros take less power, and so less time."""
    left, right = (torch.randn(MATRIX_SIDE, MATRIX_SIDE).to(dtype).cuda() for _ in range(2))
    return _seconds(lambda: torch.mm(left, right), BATCHED_CALLS, REPEATS)


def _copy() -> float:
    source, target = (torch.empty(COPIED_FLOATS, device="cuda") for _ in range(2))
    source.fill_(1.0)
    return _seconds(lambda: target.copy_(source), BATCHED_CALLS, REPEATS)


def _frame_copy(shape: tuple[int, int, int], to_card: bool, pinned: bool) -> float:
    on_card, on_host = torch.empty(shape, device="cuda"), torch.empty(shape, pin_memory=pinned)
    on_host.fill_(1.0)
    source, target = (on_host, on_card) if to_card else (on_card, on_host)
    return _seconds(lambda: target.copy_(source, non_blocking=True), 1, FRAME_REPEATS)


def _seconds(call: Callable[[], object], batched: int, repeats: int) -> float:
    """Return the median seconds of one call, over `repeats` batches of `batched` calls."""
    times = []
    for _ in range(WARM_UPS + repeats):
        torch.cuda.synchronize()
        began = time.perf_counter()
        for _ in range(batched):
            call()
        torch.cuda.synchronize()
        times.append((time.perf_counter() - began) / batched)
    return float(np.median(times[WARM_UPS:]))
