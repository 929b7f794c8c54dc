"""What all networks on a GPU have in common: fixed buffers, a stream, and the way of a frame there and back."""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from deploy.backends.gpu.device import gpu_errors

FRAME_AXES = 4  # (1, C, H, W)

Enqueue = Callable[[int], bool]  # put the network's work on the stream with this handle; whether that went well


class GpuRunner:
    """Runs batches one frame at a time; several threads take turns. GpuLost where the GPU is beyond use.

    `enqueue` makes the network read `frame` (1, C, H, W) and write `output`, both float32 on the GPU; it is dropped,
    with all that it holds, when the runner is closed, and `closed` is called.
    """

    def __init__(self, frame: Tensor, output: Tensor, enqueue: Enqueue, closed: Callable[[], None] = lambda: None):
        self._lock = threading.Lock()
        self._enqueue: Enqueue | None = enqueue
        self._closed = closed
        self._frame, self._output = frame, output
        # Copies from pageable memory would block the processor until they are done.
        self._staged_frame = torch.empty(frame.shape, pin_memory=True)
        self._staged_output = torch.empty(output.shape, pin_memory=True)
        self._stream = torch.cuda.Stream()

    def run(self, batch: np.ndarray) -> np.ndarray:
        with self._lock:
            return self._run([self], batch)

    def run_after(self, first: GpuRunner, batch: np.ndarray) -> np.ndarray:
        """What this network makes of what `first` makes of the batch, which stays on the GPU in between."""
        with first._lock, self._lock:
            return self._run([first, self], batch)

    def close(self) -> None:
        with self._lock:
            if self._enqueue is not None:
                self._enqueue = None
                self._closed()

    def _run(self, chain: list[GpuRunner], batch: np.ndarray) -> np.ndarray:
        expected = tuple(chain[0]._frame.shape)
        if batch.ndim != FRAME_AXES or batch.shape[1:] != expected[1:]:
            raise RuntimeError(f"the network on the GPU takes frames of {expected}, not {batch.shape}")
        with gpu_errors():
            outputs = [self._run_one(chain, frame) for frame in batch]
        return outputs[0] if len(outputs) == 1 else np.concatenate(outputs)

    def _run_one(self, chain: list[GpuRunner], frame: np.ndarray) -> np.ndarray:
        arriving = chain[0]._staged_frame
        np.copyto(arriving.numpy()[0], frame)
        try:
            with torch.cuda.stream(self._stream):
                for runner in chain:
                    runner._frame.copy_(arriving, non_blocking=True)
                    runner._start(self._stream.cuda_stream)
                    arriving = runner._output
                self._staged_output.copy_(arriving, non_blocking=True)
        finally:
            self._stream.synchronize()  # also where it broke off: what was begun reads and writes these buffers
        return self._staged_output.numpy().copy()

    def _start(self, stream: int) -> None:
        if self._enqueue is None:
            raise RuntimeError("the runner is closed")
        if not self._enqueue(stream):
            raise RuntimeError("the GPU did not take the network's work")
