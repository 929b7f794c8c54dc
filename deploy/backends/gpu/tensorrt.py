"""The TensorRT backends: NVIDIA's TensorRT, and its TensorRT for RTX."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import cached_property
from types import ModuleType
from typing import Any

import torch
from torch.export import ExportedProgram

from deploy.backends.gpu.backend import Engine, GpuBackend
from deploy.backends.gpu.device import describe_gpu
from deploy.backends.gpu.tensorrt_engine import TensorRtEngine
from deploy.backends.gpu.tensorrt_library import Library, listener, load_tensorrt, load_tensorrt_rtx
from deploy.backends.gpu.torch_tensorrt_build import build_with_torch_tensorrt, load_torch_tensorrt
from deploy.backends.onnx_export import to_onnx
from deploy.model.program import ModelError, first_line

log = logging.getLogger(__name__)


class TensorRtBackend(GpuBackend):
    name = "tensorrt"
    stand_in: str | None = "cuda"
    _load_library: Callable[[], Library] = staticmethod(load_tensorrt)
    _load_torch_tensorrt: Callable[[], ModuleType | None] = staticmethod(load_torch_tensorrt)

    def __init__(self) -> None:
        super().__init__()
        self._library = self._load_library()

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

    def _build(self, program: ExportedProgram, inputs: Sequence[str]) -> bytes:
        """By torch-tensorrt where it is there and takes the network, else by NVIDIA's ONNX parser."""
        if self._torch_tensorrt is not None:
            try:
                return build_with_torch_tensorrt(self._torch_tensorrt, program, inputs)
            except ModelError as error:
                log.warning("%s; the ONNX parser is used instead", error)
        return build_engine(self._library, to_onnx(program))

    def _open(self, serialized: bytes) -> Engine:
        return TensorRtEngine(self._library, serialized)


class TensorRtRtxBackend(TensorRtBackend):
    name = "tensorrt-rtx"
    stand_in = None  # what it does ahead of time takes seconds
    _load_library = staticmethod(load_tensorrt_rtx)
    _load_torch_tensorrt = staticmethod(lambda: None)


def build_engine(library: Library, model: bytes) -> bytes:
    """An engine for an ONNX model whose shapes are all fixed, in the precisions that the model names, without TF32.

    Raises ModelError, which names the operator where it is one that the parser does not know.
    """
    heard = listener(library)
    builder = library.api.Builder(heard)
    network = parse(library, builder, model)
    engine = builder.build_serialized_network(network, _config(library, builder))
    if engine is None:
        raise ModelError(f"{library.name} cannot build it: {next(iter(heard.errors), 'it gives no reason')}")
    return bytes(engine)


def parse(library: Library, builder: Any, model: bytes) -> Any:
    """NVIDIA's definition of the network. Raises ModelError."""
    network = builder.create_network(_strong_typing(library))
    parser = library.api.OnnxParser(network, builder.logger)
    if not parser.parse(model):
        raise ModelError(f"{library.name} cannot read it: {_problem(parser)}")
    return network


def _strong_typing(library: Library) -> int:
    """The precision of every layer shall be the one in the model, not the one that happens to be fastest.

    TensorRT 10 must be told; from 11 on all networks are so, and the flag may be gone.
    """
    flag = getattr(library.api.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if flag is None else 1 << int(flag)


def _config(library: Library, builder: Any) -> Any:
    config = builder.create_builder_config()
    config.clear_flag(library.api.BuilderFlag.TF32)  # on by default: float32 with a mantissa of ten bits
    return config


def _problem(parser: Any) -> str:
    """The parser's last error in one line; its description is often the condition that did not hold."""
    error = parser.get_error(parser.num_errors - 1)
    operator = f"operator {error.node_operator()} ({error.node_name()}), " if error.node_operator() else ""
    return f"{operator}{error.code().name}: {first_line(RuntimeError(error.desc()))}"
