"""A second device on the processor, which refuses what a GPU refuses: to mix its tensors with those of the processor.

Its tensors say that they are on DEVICE. They hold real numbers, so that code runs to its end, with values to compare.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

DEVICE = torch.device("meta")  # PyTorch has no device for tests; nothing here looks at what it does with this one
MOVES = (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)


class MixedDevices(RuntimeError):
    """An operator was given tensors of both devices."""


class OtherDeviceTensor(Tensor):
    """A tensor on DEVICE. `held`: its numbers."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> OtherDeviceTensor:
        made: Any = Tensor._make_wrapper_subclass(
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=DEVICE,
        )
        made.held = held
        return made

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"OtherDeviceTensor({self.held!r})"

    def tolist(self) -> Any:
        return self.held.tolist()

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(function, args, kwargs or {})


class _Factories(TorchDispatchMode):
    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(function, args, kwargs or {})


@contextmanager
def other_device() -> Iterator[torch.device]:
    """Let DEVICE exist in the body."""
    with _Factories():
        yield DEVICE


def moved(module: nn.Module) -> nn.Module:
    """Return a copy of the module on DEVICE."""
    module = copy.deepcopy(module).requires_grad_(False)
    for part in module.modules():
        for name, value in part._parameters.items():
            if value is not None:
                part._parameters[name] = nn.Parameter(OtherDeviceTensor(value.detach()), requires_grad=False)
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = OtherDeviceTensor(buffer)
    return module


def _run(function: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
    others = [t for t in tensors if isinstance(t, OtherDeviceTensor)]
    if others and function not in MOVES and any(t.dim() for t in tensors if not isinstance(t, OtherDeviceTensor)):
        raise MixedDevices(f"{function} was given tensors of both devices")
    asked = kwargs.get("device")
    there = bool(others) if asked is None else torch.device(asked) == DEVICE
    if function is torch.ops.aten.copy_.default:
        there = isinstance(args[0], OtherDeviceTensor)
    kwargs = kwargs | ({"device": torch.device("cpu")} if asked is not None else {})
    held_args, held_kwargs = tree_map(lambda t: t.held if isinstance(t, OtherDeviceTensor) else t, (args, kwargs))
    output = function(*held_args, **held_kwargs)
    wrapped = {id(t.held): t for t in others}

    def wrap(value: Any) -> Any:
        if not isinstance(value, Tensor) or not there:
            return value
        own = wrapped.get(id(value))  # an operator in place returns its own tensor
        return OtherDeviceTensor(value) if own is None else own

    return tree_map(wrap, output)
