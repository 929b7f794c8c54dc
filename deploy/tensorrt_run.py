"""Run an engine on the GPU: a context of its own for each runner, the engine shared."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from deploy.gpu_runner import GpuRunner
from deploy.program import ModelError
from deploy.tensorrt_library import Library, listener


class Engine:
    """A deserialised engine; runners that differ in their weights alone share it."""

    def __init__(self, library: Library, serialized: bytes):
        self._heard = listener(library)  # must live as long as what it listens to
        self._runtime = library.api.Runtime(self._heard)
        self._engine = self._runtime.deserialize_cuda_engine(serialized)
        if self._engine is None:
            raise ModelError(f"{library.name} cannot load the engine: {'; '.join(self._heard.errors[:1])}")
        names = [self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)]
        is_input = {n: self._engine.get_tensor_mode(n) == library.api.TensorIOMode.INPUT for n in names}
        self.inputs = tuple(name for name in names if is_input[name])
        (self.output,) = (name for name in names if not is_input[name])

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._engine.get_tensor_shape(name))

    def context(self) -> Any:
        return self._engine.create_execution_context()


def run_engine(engine: Engine, frames: str, weights: Mapping[str, Tensor]) -> GpuRunner:
    """A runner of the engine with these weights; `frames` is the name of the input for frames. Raises ModelError."""
    wrong = set(engine.inputs) ^ {frames, *weights}
    if wrong:
        raise ModelError(f"the engine and its weights do not belong together: {', '.join(sorted(wrong))}")
    frame = torch.empty(engine.shape(frames), device="cuda")
    output = torch.empty(engine.shape(engine.output), device="cuda")
    bound = {name: tensor.float().contiguous().cuda() for name, tensor in weights.items()}
    bound |= {frames: frame, engine.output: output}
    torch.cuda.current_stream().synchronize()  # where the weights were copied, which no runner uses
    context = engine.context()
    for name, tensor in bound.items():
        if tuple(tensor.shape) != engine.shape(name):
            raise ModelError(f"{name} has shape {tuple(tensor.shape)}, the engine takes {engine.shape(name)}")
        context.set_tensor_address(name, tensor.data_ptr())

    def enqueue(stream: int, kept: Any = (engine, bound)) -> bool:
        """`kept`: what the context reads, which must live as long."""
        return bool(context.execute_async_v3(stream))

    return GpuRunner(frame, output, enqueue)
