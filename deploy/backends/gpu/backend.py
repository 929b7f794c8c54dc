"""What all GPU backends share: Φ is one engine, and ρ is an engine that takes its weights as inputs.

All ρ of the same parts for frames of one shape have the same engine, byte for byte. A recalibration gives it other
weights. So the ρ that serves differs from a ρ that was proven before in its weights only, and not in the kernels that a
builder chose.
"""

from __future__ import annotations

import copy
import hashlib
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.func import functional_call

from calibrate.homogenizer import Homogenizer
from calibrate.split import SplitHomogenizer
from deploy.backends.gpu.device import gpu_errors, require_gpu
from deploy.backends.gpu.runner import GpuRunner
from deploy.model.program import ModelError, export_static, first_line

FRAMES_INPUT = "frames"  # name of the network's input
ENGINE_KEY = "engine"  # name of the engine's bytes beside the weights in a compiled form


class GpuEngine(Protocol):
    """An engine on the GPU. `shapes`: of all inputs by name; that of the frames is (1, C, H, W)."""

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]: ...

    def runner(self, weights: Mapping[str, Tensor]) -> GpuRunner:
        """Make a runner with these weights (float32), by the names of the engine's inputs."""


class GpuBackend(ABC):
    """Implements the Backend and SharesKernels protocols; a subclass builds and opens engines."""

    name: str
    stand_in: str | None = None

    def __init__(self) -> None:
        # By SHA-256: one for Φ, and one for ρ of each frame shape and set of parts.
        self._engines: dict[str, GpuEngine] = {}

    def check_device(self) -> None:
        require_gpu(f"backend {self.name!r}")

    def compile(self, module: nn.Module, example: torch.Tensor) -> bytes:
        weights = _homogenizer_weights(module)
        named = _WeightsAsInputs(module) if weights else _NamedInput(module)
        program = export_static(named, example[:1], *weights.values())
        engine = self._build(program, (FRAMES_INPUT, *weights))
        return safetensors.torch.save({ENGINE_KEY: torch.frombuffer(bytearray(engine), dtype=torch.uint8)} | weights)

    def with_weights_of(self, homogenizer: nn.Module, compiled: bytes) -> bytes:
        engine = unpack_engine(compiled)[ENGINE_KEY]
        return safetensors.torch.save({ENGINE_KEY: engine} | _homogenizer_weights(homogenizer))

    def load(self, compiled: bytes, threads: int) -> GpuRunner:
        """Load onto the GPU; `threads` is not used. Raises BackendUnavailable, ModelError, OSError."""
        self.check_device()
        weights = unpack_engine(compiled)
        serialized = weights.pop(ENGINE_KEY).numpy().tobytes()
        digest = hashlib.sha256(serialized).hexdigest()
        with gpu_errors():
            if digest not in self._engines:
                self._engines[digest] = self._open(serialized)
            engine = self._engines[digest]
            _check_weights(engine.shapes, weights)
            return engine.runner(weights)

    @abstractmethod
    def version(self) -> str: ...

    @abstractmethod
    def _build(self, program: ExportedProgram, inputs: Sequence[str]) -> bytes:
        """Build an engine whose inputs have these names. Raises ModelError."""

    @abstractmethod
    def _open(self, serialized: bytes) -> GpuEngine:
        """Load an engine onto the GPU. Raises ModelError, OSError."""


def unpack_engine(compiled: bytes) -> dict[str, Tensor]:
    """Read the engine's bytes (ENGINE_KEY, uint8) and the weights that it takes, by name. Raises ModelError."""
    try:
        packed = safetensors.torch.load(compiled)
    except (safetensors.SafetensorError, ValueError) as error:
        raise ModelError(f"not an engine that recald has built: {first_line(error)}") from error
    if ENGINE_KEY not in packed or packed[ENGINE_KEY].dtype != torch.uint8:
        raise ModelError("not an engine that recald has built: it holds no engine")
    return packed


class _NamedInput(nn.Module):
    """Gives the network's only input the name FRAMES_INPUT: torch.export takes it from the argument of forward."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, frames: Tensor) -> Tensor:
        output: Tensor = self.network(frames)
        return output


class _WeightsAsInputs(nn.Module):
    """Makes a homogenizer a function of frames and weights, in the order of `_homogenizer_weights`."""

    def __init__(self, homogenizer: nn.Module):
        super().__init__()
        self.homogenizer = copy.deepcopy(homogenizer)
        self._names = list(_homogenizer_weights(homogenizer))
        for name in self._names:  # weights of its own would become part of the engine
            self.homogenizer.register_parameter(name, None)
        self.forward = _with_arguments(self._compute, (FRAMES_INPUT, *self._names))

    def _compute(self, frames: Tensor, *weights: Tensor) -> Tensor:
        named = dict(zip(self._names, weights, strict=True))
        output: Tensor = functional_call(self.homogenizer, named, (frames,))
        return output


def _with_arguments(function: Callable[..., Tensor], names: Sequence[str]) -> Callable[..., Tensor]:
    """Give a function of positional arguments a signature: torch.export names the inputs by it."""

    def call(*arguments: Tensor) -> Tensor:
        return function(*arguments)

    named: Any = call  # no type has the attribute by which Python lets a function tell its own signature (PEP 362)
    parameters = [inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in names]
    named.__signature__ = inspect.Signature(parameters)
    return call


def _homogenizer_weights(module: nn.Module) -> dict[str, Tensor]:
    """Copy the weights that a recalibration changes: all of ρ's, none of Φ's."""
    if not isinstance(module, Homogenizer | SplitHomogenizer):
        return {}
    return {name: value.detach().float().cpu().contiguous() for name, value in module.named_parameters()}


def _check_weights(shapes: Mapping[str, tuple[int, ...]], weights: Mapping[str, Tensor]) -> None:
    """Check that the engine takes these weights. Raises ModelError."""
    wrong = set(shapes) ^ {FRAMES_INPUT, *weights}
    if wrong:
        raise ModelError(f"the engine and its weights do not belong together: {', '.join(sorted(wrong))}")
    for name, tensor in weights.items():
        if tuple(tensor.shape) != shapes[name]:
            raise ModelError(f"{name} has shape {tuple(tensor.shape)}, the engine takes {shapes[name]}")
