"""The least time that one frame can take on a card: what has to be computed, moved within it, and brought to it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bench.gpu.ceilings import GIGABYTES, MEMORY, TERAFLOPS, TO_CARD
from bench.gpu.material import HOMOGENIZER, NETWORK, Material
from bench.overhead import count
from deploy.model.precision import FLOAT32, PRECISIONS

aten = torch.ops.aten
PRODUCTS = (aten.convolution.default, aten.addmm.default)
FLOAT32_BYTES = 4

Row = dict[str, Any]


def roofline(material: Material, precision: str, measured: Sequence[Row]) -> Row:
    """Milliseconds that a frame through both takes at least, by what sets the limit, and the frames a second then.

    `measured`: rows of ceilings and copies. Raises LookupError where one that is needed was not measured.
    """
    used, counted = {HOMOGENIZER: FLOAT32, NETWORK: precision}, _count(material)
    operations = {part: 2 * counted[part]["multiplications"] for part in used}
    frame = FLOAT32_BYTES * math.prod(material.shape)
    moved = sum(counted[part]["numbers"] * PRECISIONS[name].dtype.itemsize for part, name in used.items())
    seconds = {
        "arithmetic": sum(operations[p] / 1e12 / _found(measured, TERAFLOPS, what=name) for p, name in used.items()),
        "memory": moved / 1e9 / _found(measured, GIGABYTES, what=MEMORY),
        "host": frame / 1e9 / _found(measured, GIGABYTES, size=material.size, direction=TO_CARD, pinned=True),
    }
    limit = max(seconds, key=lambda name: seconds[name])
    times = {f"{name}_ms": 1e3 * value for name, value in seconds.items()}
    return {"counted": counted, **times, "limit": limit, "frames_per_second": 1 / seconds[limit]}


@cache
def _count(material: Material) -> dict[str, dict[str, int]]:
    """Of each network, for one frame: multiplications, and the numbers that its products read and write.

    Each convolution, and the last layer, reads its input and weights once and writes its output once, as where all
    that is between two of them is done on the way.
    """
    parts: dict[str, nn.Module] = {HOMOGENIZER: material.homogenizer, NETWORK: material.network}
    return {
        part: count(module, material.shape) | {"numbers": _numbers(module, material.shape)}
        for part, module in parts.items()
    }


def _found(measured: Sequence[Row], key: str, **wanted: object) -> float:
    for row in measured:
        if key in row and wanted.items() <= row.items():
            return float(row[key])
    raise LookupError(f"no {key} of {wanted} was measured")


def _numbers(module: nn.Module, shape: tuple[int, int, int]) -> int:
    with _Traffic() as traffic, torch.no_grad():
        module(torch.zeros(1, *shape))
    return traffic.numbers


class _Traffic(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = function(*args, **(kwargs or {}))
        if function in PRODUCTS:
            touched = (leaf for leaf in tree_leaves((args, output)) if isinstance(leaf, torch.Tensor))
            self.numbers += sum(tensor.numel() for tensor in touched)
        return output
