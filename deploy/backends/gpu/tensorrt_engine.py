"""An engine on the GPU; runners that differ in their weights alone share it, each with a context of its own."""

from __future__ import annotations

import errno
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from deploy.backends.gpu.backend import FRAMES
from deploy.backends.gpu.runner import GpuRunner
from deploy.backends.gpu.tensorrt_library import Library, listener
from deploy.model.program import ModelError


class TensorRtEngine:
    """Deserialised. Raises ModelError, OSError where the GPU has no memory left."""

    def __init__(self, library: Library, serialized: bytes):
        self._name = library.name
        self._heard = listener(library)  # must live as long as what it listens to
        self._runtime = library.api.Runtime(self._heard)
        self._engine = self._runtime.deserialize_cuda_engine(serialized)
        if self._engine is None:
            raise self._refusal("cannot load the engine")
        names = [self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)]
        is_input = {n: self._engine.get_tensor_mode(n) == library.api.TensorIOMode.INPUT for n in names}
        self.shapes = {name: self._shape(name) for name in names if is_input[name]}
        (self._output,) = (name for name in names if not is_input[name])

    def runner(self, weights: Mapping[str, Tensor]) -> GpuRunner:
        frame = torch.empty(self.shapes[FRAMES], device="cuda")
        output = torch.empty(self._shape(self._output), device="cuda")
        bound = {name: tensor.cuda() for name, tensor in weights.items()} | {FRAMES: frame, self._output: output}
        torch.cuda.current_stream().synchronize()  # where the weights were copied, which no runner uses
        context = self._context()
        for name, tensor in bound.items():
            context.set_tensor_address(name, tensor.data_ptr())

        def enqueue(stream: int, kept: Any = (self, bound)) -> bool:
            """`kept`: what the context reads, which must live as long."""
            return bool(context.execute_async_v3(stream))

        return GpuRunner(frame, output, enqueue)

    def _shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._engine.get_tensor_shape(name))

    def _context(self) -> Any:
        self._heard.errors.clear()  # what is told is about this context
        context = self._engine.create_execution_context()
        if context is None:
            raise self._refusal("gives no context for the engine")
        return context

    def _refusal(self, what: str) -> ModelError | OSError:
        """Memory may be there another time, as when a stand-in no longer holds the model as well."""
        said = f"{self._name} {what}: {next(iter(self._heard.errors), 'it gives no reason')}"
        short_of_memory = any("OutOfMemory" in error for error in self._heard.errors)
        return OSError(errno.ENOMEM, said) if short_of_memory else ModelError(said)
