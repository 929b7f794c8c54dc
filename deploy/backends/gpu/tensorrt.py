"""The TensorRT backends: NVIDIA's TensorRT, and its TensorRT for RTX."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import cached_property
from types import ModuleType

import torch
from torch.export import ExportedProgram

from deploy.backends.gpu.backend import Engine, GpuBackend
from deploy.backends.gpu.device import describe_gpu
from deploy.backends.gpu.tensorrt_build import build_engine
from deploy.backends.gpu.tensorrt_engine import TensorRtEngine
from deploy.backends.gpu.tensorrt_library import Library, load_tensorrt, load_tensorrt_rtx
from deploy.backends.gpu.torch_tensorrt_build import build_with_torch_tensorrt, load_torch_tensorrt
from deploy.backends.onnx_export import onnx_form
from deploy.model.program import ModelError

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
        return build_engine(self._library, onnx_form(program))

    def _open(self, serialized: bytes) -> Engine:
        return TensorRtEngine(self._library, serialized)


class TensorRtRtxBackend(TensorRtBackend):
    name = "tensorrt-rtx"
    stand_in = None  # what it does ahead of time takes seconds
    _load_library = staticmethod(load_tensorrt_rtx)
    _load_torch_tensorrt = staticmethod(lambda: None)
