"""What the GPU backends have in common: Φ as one engine, ρ as an engine that takes its weights as inputs.

All ρ for frames of one shape have the same engine, byte for byte: a recalibration hands it other weights, so that
only the weights differ between what was proven before and what serves now, not the kernels that a builder happens
to choose.
"""

from __future__ import annotations

import copy
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Protocol

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.func import functional_call

from calibrate.homogenizer import Homogenizer
from deploy.backends.gpu.device import gpu_errors, require_gpu
from deploy.backends.gpu.runner import GpuRunner
from deploy.model.program import ModelError, export_static, first_line

FRAMES, ENGINE = "frames", "engine"  # the name of the network's input, and of the engine among its weights


class Engine(Protocol):
    """On the GPU. `shapes`: of all inputs by name, those of frames (1, C, H, W)."""

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]: ...

    def runner(self, weights: Mapping[str, Tensor]) -> GpuRunner:
        """One with these weights, float32, by the names of the inputs."""


class GpuBackend(ABC):
    name: str
    stand_in: str | None = None

    def __init__(self) -> None:
        self._engines: dict[str, Engine] = {}  # by SHA-256: one of Φ, and one of ρ for each shape of frames

    def check_device(self) -> None:
        require_gpu(self.name)

    def compile(self, module: nn.Module, example: torch.Tensor) -> bytes:
        weights = _weights(module)
        named = _ByWeights(module) if weights else _Named(module)
        program = export_static(named, example[:1], *weights.values())
        engine = self._build(program, (FRAMES, *weights))
        return safetensors.torch.save({ENGINE: torch.frombuffer(bytearray(engine), dtype=torch.uint8)} | weights)

    def with_weights_of(self, homogenizer: nn.Module, compiled: bytes) -> bytes:
        return safetensors.torch.save({ENGINE: unpack(compiled)[ENGINE]} | _weights(homogenizer))

    def load(self, compiled: bytes, threads: int) -> GpuRunner:
        """Needs the GPU; `threads` is for processors. Raises BackendUnavailable, ModelError, OSError."""
        self.check_device()
        weights = unpack(compiled)
        serialized = weights.pop(ENGINE).numpy().tobytes()
        with gpu_errors():
            engine = self._opened(serialized)
            _check(engine.shapes, weights)
            return engine.runner(weights)

    @abstractmethod
    def version(self) -> str: ...

    @abstractmethod
    def _build(self, program: ExportedProgram, inputs: Sequence[str]) -> bytes:
        """An engine whose inputs have these names. Raises ModelError."""

    @abstractmethod
    def _open(self, serialized: bytes) -> Engine:
        """Raises ModelError."""

    def _opened(self, serialized: bytes) -> Engine:
        digest = hashlib.sha256(serialized).hexdigest()
        if digest not in self._engines:
            self._engines[digest] = self._open(serialized)
        return self._engines[digest]


def unpack(compiled: bytes) -> dict[str, Tensor]:
    """The engine's bytes, and the weights that it takes as inputs, by name. Raises ModelError."""
    try:
        packed = safetensors.torch.load(compiled)
    except (safetensors.SafetensorError, ValueError) as error:
        raise ModelError(f"not an engine of recald's making: {first_line(error)}") from error
    if ENGINE not in packed or packed[ENGINE].dtype != torch.uint8:
        raise ModelError("not an engine of recald's making: there is none in it")
    return packed


class _Named(nn.Module):
    """Gives the network's only input its name."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, frames: Tensor) -> Tensor:
        output: Tensor = self.network(frames)
        return output


class _ByWeights(nn.Module):
    """A homogenizer as a function of frames and of its weights."""

    def __init__(self, homogenizer: nn.Module):
        super().__init__()
        self.homogenizer = copy.deepcopy(homogenizer)
        for name in _weights(homogenizer):  # its own would become part of the engine
            self.homogenizer.register_parameter(name, None)

    def forward(self, frames: Tensor, curve: Tensor, offset: Tensor, kernel: Tensor, bias: Tensor) -> Tensor:
        weights = {"curve": curve, "offset": offset, "kernel": kernel, "bias": bias}
        output: Tensor = functional_call(self.homogenizer, weights, (frames,))
        return output


def _weights(module: nn.Module) -> dict[str, Tensor]:
    """Those that a recalibration changes: all of ρ's, none of Φ's."""
    if not isinstance(module, Homogenizer):
        return {}
    return {name: value.detach().float().cpu().contiguous() for name, value in module.named_parameters()}


def _check(shapes: Mapping[str, tuple[int, ...]], weights: Mapping[str, Tensor]) -> None:
    """Raise ModelError unless the engine takes these weights."""
    wrong = set(shapes) ^ {FRAMES, *weights}
    if wrong:
        raise ModelError(f"the engine and its weights do not belong together: {', '.join(sorted(wrong))}")
    for name, tensor in weights.items():
        if tuple(tensor.shape) != shapes[name]:
            raise ModelError(f"{name} has shape {tuple(tensor.shape)}, the engine takes {shapes[name]}")
