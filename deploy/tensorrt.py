"""The TensorRT backends: Φ as one engine, ρ as an engine that takes its weights as inputs.

All ρ for frames of one shape have the same engine, byte for byte: a recalibration hands it other weights, so that
only the weights differ between what was proven before and what serves now, not the kernels that NVIDIA's builder
happens to choose.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Sequence
from functools import cached_property
from types import ModuleType
from weakref import WeakValueDictionary

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.func import functional_call

from calibrate.homogenizer import Homogenizer
from deploy.gpu import describe_gpu, gpu_errors, require_gpu
from deploy.gpu_runner import GpuRunner
from deploy.onnx_form import onnx_form
from deploy.program import ModelError, export_static, first_line
from deploy.tensorrt_build import build_engine
from deploy.tensorrt_library import Library, load_tensorrt, load_tensorrt_rtx
from deploy.tensorrt_run import Engine, run_engine
from deploy.torch_tensorrt_build import build_with_torch_tensorrt, load_torch_tensorrt

FRAMES, ENGINE = "frames", "engine"  # the name of the network's input, and of the engine among its weights

log = logging.getLogger(__name__)


class TensorRtBackend:
    name = "tensorrt"
    stand_in: str | None = "cuda"
    _load_library: Callable[[], Library] = staticmethod(load_tensorrt)
    _load_torch_tensorrt: Callable[[], ModuleType | None] = staticmethod(load_torch_tensorrt)

    def __init__(self) -> None:
        self._library = self._load_library()
        self._engines: WeakValueDictionary[str, Engine] = WeakValueDictionary()  # of all open runners, by SHA-256

    def check_device(self) -> None:
        require_gpu(self.name)

    def compile(self, module: nn.Module, example: torch.Tensor) -> bytes:
        weights = _weights(module)
        named = _ByWeights(module) if weights else _Named(module)
        program = export_static(named, example[:1], *weights.values())
        engine = self._build(program, (FRAMES, *weights))
        packed = {ENGINE: torch.frombuffer(bytearray(engine), dtype=torch.uint8)} | weights
        return safetensors.torch.save(packed)

    def with_weights_of(self, homogenizer: nn.Module, compiled: bytes) -> bytes:
        packed = unpack(compiled)
        return safetensors.torch.save({ENGINE: packed[ENGINE]} | _weights(homogenizer))

    def load(self, compiled: bytes, threads: int) -> GpuRunner:
        """Needs the GPU; `threads` is for processors. Raises BackendUnavailable, ModelError, OSError."""
        self.check_device()
        packed = unpack(compiled)
        serialized = packed.pop(ENGINE).numpy().tobytes()
        digest = hashlib.sha256(serialized).hexdigest()
        with gpu_errors():
            engine = self._engines.get(digest)
            if engine is None:
                engine = self._engines[digest] = Engine(self._library, serialized)
            return run_engine(engine, FRAMES, packed)

    def version(self) -> str:
        """Names the builder that is asked first: which networks that one refuses depends on its version alone."""
        library = f"{self._library.name} {self._library.version}, built by {self._builder()}"
        return f"{library}, torch {torch.__version__}, {describe_gpu()}"

    @cached_property
    def _torch_tensorrt(self) -> ModuleType | None:
        return self._load_torch_tensorrt()  # takes seconds, which running an engine need not wait for

    def _builder(self) -> str:
        if self._torch_tensorrt is None:
            return "its ONNX parser"
        return f"torch-tensorrt {self._torch_tensorrt.__version__}"

    def _build(self, program: torch.export.ExportedProgram, inputs: Sequence[str]) -> bytes:
        """By torch-tensorrt where it is there and takes the network, else by NVIDIA's ONNX parser."""
        if self._torch_tensorrt is not None:
            try:
                return build_with_torch_tensorrt(self._torch_tensorrt, program, inputs)
            except ModelError as error:
                log.warning("%s; the ONNX parser is used instead", error)
        return build_engine(self._library, onnx_form(program))


class TensorRtRtxBackend(TensorRtBackend):
    name = "tensorrt-rtx"
    stand_in = None  # what it does ahead of time takes seconds
    _load_library = staticmethod(load_tensorrt_rtx)
    _load_torch_tensorrt = staticmethod(lambda: None)


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
        self.homogenizer = homogenizer

    def forward(self, frames: Tensor, curve: Tensor, offset: Tensor, kernel: Tensor, bias: Tensor) -> Tensor:
        weights = {"curve": curve, "offset": offset, "kernel": kernel, "bias": bias}
        output: Tensor = functional_call(self.homogenizer, weights, (frames,))
        return output


def _weights(module: nn.Module) -> dict[str, Tensor]:
    """Those that a recalibration changes: all of ρ's, none of Φ's."""
    if not isinstance(module, Homogenizer):
        return {}
    return {name: value.detach().cpu().contiguous() for name, value in module.named_parameters()}
