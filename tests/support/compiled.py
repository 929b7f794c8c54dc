"""Compiled forms that several tests of a run need: exporting even a small module takes a quarter of a second."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import nn

_COMPILED: dict[tuple[Any, ...], bytes] = {}


def compile_once(backend: Any, module: nn.Module, example: torch.Tensor) -> bytes:
    """Return what the backend compiles the module to: compiled once for the same structure and weights."""
    weights = hashlib.sha256()
    for name, value in module.state_dict().items():
        weights.update(f"{name} {tuple(value.shape)} ".encode() + value.contiguous().numpy().tobytes())
    key = (backend.version(), type(module), repr(module), weights.digest(), tuple(example.shape))
    if key not in _COMPILED:
        _COMPILED[key] = backend.compile(module, example)
    return _COMPILED[key]
