"""Run an engine on the GPU: one context, one stream and fixed buffers for each runner."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from deploy.program import ModelError
from deploy.tensorrt_library import Library, listener

FRAME_AXES = 4  # (1, C, H, W)


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


class TensorRtRunner:
    """Runs batches one frame at a time, on a stream of its own; several threads take turns."""

    def __init__(self, engine: Engine, frames: str, weights: Mapping[str, Tensor]):
        missing = set(engine.inputs) ^ {frames, *weights}
        if missing:
            raise ModelError(f"the engine and its weights do not belong together: {', '.join(sorted(missing))}")
        self._lock = threading.Lock()
        self._engine = engine
        self._context: Any = engine.context()
        self._stream = torch.cuda.Stream()
        self._input = torch.empty(engine.shape(frames), device="cuda")
        self._output = torch.empty(engine.shape(engine.output), device="cuda")
        # Copies from pageable memory would block the processor until they are done.
        self._staged_input = torch.empty(self._input.shape, pin_memory=True)
        self._staged_output = torch.empty(self._output.shape, pin_memory=True)
        self._weights = {name: tensor.float().contiguous().cuda() for name, tensor in weights.items()}
        torch.cuda.synchronize()  # the weights were copied on another stream
        bound = {frames: self._input, engine.output: self._output} | self._weights
        for name, tensor in bound.items():
            if tuple(tensor.shape) != engine.shape(name):
                raise ModelError(f"{name} has shape {tuple(tensor.shape)}, the engine takes {engine.shape(name)}")
            self._context.set_tensor_address(name, tensor.data_ptr())

    def run(self, batch: np.ndarray) -> np.ndarray:
        if batch.ndim != FRAME_AXES or batch.shape[1:] != tuple(self._input.shape[1:]):
            raise RuntimeError(f"TensorRT failed: a batch of shape {batch.shape}, not {tuple(self._input.shape)}")
        with self._lock:
            if self._context is None:
                raise RuntimeError("the runner is closed")
            return np.concatenate([self._run(frame) for frame in batch])

    def _run(self, frame: np.ndarray) -> np.ndarray:
        np.copyto(self._staged_input.numpy()[0], frame)
        with torch.cuda.stream(self._stream):
            self._input.copy_(self._staged_input, non_blocking=True)
            enqueued = self._context.execute_async_v3(self._stream.cuda_stream)
            self._staged_output.copy_(self._output, non_blocking=True)
        self._stream.synchronize()
        if not enqueued:
            raise RuntimeError("TensorRT failed: the engine was not enqueued")
        return self._staged_output.numpy().copy()

    def close(self) -> None:
        with self._lock:
            self._context = None
