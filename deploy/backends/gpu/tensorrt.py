"""The TensorRT backends: NVIDIA's TensorRT, and its TensorRT for RTX."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import cached_property
from types import ModuleType
from typing import Any

import torch
from torch.export import ExportedProgram

from deploy.backends.gpu.backend import GpuBackend, GpuEngine
from deploy.backends.gpu.device import describe_gpu
from deploy.backends.gpu.tensorrt_engine import TensorRtEngine
from deploy.backends.gpu.tensorrt_library import TensorRtLibrary, error_listener, load_tensorrt, load_tensorrt_rtx
from deploy.backends.gpu.torch_tensorrt_build import build_with_torch_tensorrt, load_torch_tensorrt
from deploy.backends.onnx_export import to_onnx
from deploy.model.program import ModelError, first_line

log = logging.getLogger(__name__)


class TensorRtBackend(GpuBackend):
    """Builds engines with TensorRT, which takes minutes. Construction raises BackendUnavailable."""

    name = "tensorrt"
    stand_in: str | None = "cuda"
    _load_library: Callable[[], TensorRtLibrary] = staticmethod(load_tensorrt)
    _load_torch_tensorrt: Callable[[], ModuleType | None] = staticmethod(load_torch_tensorrt)

    def __init__(self) -> None:
        super().__init__()
        self._library = self._load_library()

    def version(self) -> str:
        """Name the versions that an engine depends on, with the builder that is tried first.

        Whether that builder refuses a network depends on its own version only.
        """
        torch_tensorrt = self._torch_tensorrt
        builder = "its ONNX parser" if torch_tensorrt is None else f"torch-tensorrt {torch_tensorrt.__version__}"
        library = f"{self._library.name} {self._library.version}, built by {builder}"
        return f"{library}, torch {torch.__version__}, {describe_gpu()}"

    @cached_property
    def _torch_tensorrt(self) -> ModuleType | None:
        return self._load_torch_tensorrt()  # takes seconds, and running an engine does not need it

    def _build(self, program: ExportedProgram, inputs: Sequence[str]) -> bytes:
        """Build with torch-tensorrt if it is installed and takes the network, else with NVIDIA's ONNX parser."""
        if self._torch_tensorrt is not None:
            try:
                return build_with_torch_tensorrt(self._torch_tensorrt, program, inputs)
            except ModelError as error:
                log.warning("%s; the ONNX parser is used instead", error)
        return build_engine(self._library, to_onnx(program))

    def _open(self, serialized: bytes) -> GpuEngine:
        return TensorRtEngine(self._library, serialized)


class TensorRtRtxBackend(TensorRtBackend):
    """Builds engines with TensorRT for RTX. Construction raises BackendUnavailable."""

    name = "tensorrt-rtx"
    stand_in = None  # building takes seconds
    _load_library = staticmethod(load_tensorrt_rtx)
    _load_torch_tensorrt = staticmethod(lambda: None)  # torch-tensorrt is made for TensorRT


def build_engine(library: TensorRtLibrary, model: bytes) -> bytes:
    """Build an engine from an ONNX model with fixed shapes, in the precisions of the model, without TF32.

    Raises ModelError. It names the operator if the parser does not know one.
    """
    listener = error_listener(library)
    builder = library.api.Builder(listener)
    network = parse_network(library, builder, model)
    config = builder.create_builder_config()
    config.clear_flag(library.api.BuilderFlag.TF32)  # on by default; TF32 is float32 with a mantissa of ten bits
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise ModelError(f"{library.name} cannot build it: {next(iter(listener.errors), 'it gives no reason')}")
    return bytes(engine)


def parse_network(library: TensorRtLibrary, builder: Any, model: bytes) -> Any:
    """Parse an ONNX model into an INetworkDefinition. Raises ModelError."""
    network = builder.create_network(_strong_typing_flags(library))
    parser = library.api.OnnxParser(network, builder.logger)
    if not parser.parse(model):
        raise ModelError(f"{library.name} cannot read it: {_describe_parser_error(parser)}")
    return network


def _strong_typing_flags(library: TensorRtLibrary) -> int:
    """Ask for the precision in the model for every layer, instead of the fastest precision.

    TensorRT 10 needs this flag. From TensorRT 11 on all networks are strongly typed, and the flag may be gone.
    """
    flag = getattr(library.api.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if flag is None else 1 << int(flag)


def _describe_parser_error(parser: Any) -> str:
    """Describe the last error in one line. Its text is often the condition that was not met."""
    error = parser.get_error(parser.num_errors - 1)
    operator = f"operator {error.node_operator()} ({error.node_name()}), " if error.node_operator() else ""
    return f"{operator}{error.code().name}: {first_line(RuntimeError(error.desc()))}"
