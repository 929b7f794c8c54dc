"""A TensorRT engine on the GPU. Runners that differ in their weights only share it, each with its own context."""

from __future__ import annotations

import errno
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from deploy.backends.gpu.backend import FRAMES_INPUT
from deploy.backends.gpu.runner import GpuRunner
from deploy.backends.gpu.tensorrt_library import TensorRtLibrary, error_listener
from deploy.model.program import ModelError


class TensorRtEngine:
    """A deserialised engine. Construction and `runner` raise ModelError, and OSError if the GPU's memory is full."""

    def __init__(self, library: TensorRtLibrary, serialized: bytes):
        self._name = library.name
        self._listener = error_listener(library)  # TensorRT needs it as long as the runtime and the engine
        self._runtime = library.api.Runtime(self._listener)
        self._engine = self._runtime.deserialize_cuda_engine(serialized)
        if self._engine is None:
            raise self._error("cannot load the engine")
        names = [self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)]
        is_input = {n: self._engine.get_tensor_mode(n) == library.api.TensorIOMode.INPUT for n in names}
        self.shapes = {name: self._shape(name) for name in names if is_input[name]}
        (self._output,) = (name for name in names if not is_input[name])

    def runner(self, weights: Mapping[str, Tensor]) -> GpuRunner:
        """Make a runner with these weights, by their names."""
        frame = torch.empty(self.shapes[FRAMES_INPUT], device="cuda")
        output = torch.empty(self._shape(self._output), device="cuda")
        tensors = {name: tensor.cuda() for name, tensor in weights.items()}
        tensors |= {FRAMES_INPUT: frame, self._output: output}
        torch.cuda.current_stream().synchronize()  # the weights were copied on this stream, which no runner uses
        context = self._create_context()
        for name, tensor in tensors.items():
            context.set_tensor_address(name, tensor.data_ptr())

        def enqueue(stream: int, keep_alive: Any = (self, tensors)) -> bool:
            """Start the network. `keep_alive` holds the engine and the tensors, which the context uses by address."""
            return bool(context.execute_async_v3(stream))

        return GpuRunner(frame, output, enqueue)

    def _shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._engine.get_tensor_shape(name))

    def _create_context(self) -> Any:
        self._listener.errors.clear()  # the errors that follow are about this context
        context = self._engine.create_execution_context()
        if context is None:
            raise self._error("gives no context for the engine")
        return context

    def _error(self, failure: str) -> ModelError | OSError:
        """Make the error to raise, with the first reason that TensorRT gave.

        Missing memory is an OSError: there may be enough later, for example when the stand-in has released the model.
        """
        message = f"{self._name} {failure}: {next(iter(self._listener.errors), 'it gives no reason')}"
        out_of_memory = any("OutOfMemory" in error for error in self._listener.errors)
        return OSError(errno.ENOMEM, message) if out_of_memory else ModelError(message)
