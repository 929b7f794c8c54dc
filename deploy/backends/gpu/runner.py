"""Run any network on the GPU: fixed buffers, a stream, and the copies of a frame to the GPU and back."""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from deploy.backends.gpu.device import gpu_errors

FRAME_AXES = 4  # (1, C, H, W)

Enqueue = Callable[[int], bool]  # puts the network's work on the stream with this handle; returns False if it fails


class GpuRunner:
    """Implements the Runner protocol. Batches run one frame at a time, and threads take turns.

    `enqueue` makes the network read `frame` (1, C, H, W) and write `output`, both float32 on the GPU. When the runner
    is closed, `enqueue` is dropped with all that it holds, and `on_close` is called.
    """

    def __init__(self, frame: Tensor, output: Tensor, enqueue: Enqueue, on_close: Callable[[], None] = lambda: None):
        self._lock = threading.Lock()
        self._enqueue: Enqueue | None = enqueue
        self._on_close = on_close
        self._frame, self._output = frame, output
        # A copy to or from pageable memory would block the processor until it is done.
        self._staged_frame = torch.empty(frame.shape, pin_memory=True)
        self._staged_output = torch.empty(output.shape, pin_memory=True)
        self._stream = torch.cuda.Stream()

    def run(self, batch: np.ndarray) -> np.ndarray:
        """Run the network. Raises RuntimeError like Runner, GpuLost or OSError for a fault of the GPU."""
        with self._lock:
            return self._run([self], batch)

    def run_after(self, first: GpuRunner, batch: np.ndarray) -> np.ndarray:
        """Run `first`, then this network on its output, which stays on the GPU. Raises like `run`."""
        with first._lock, self._lock:
            return self._run([first, self], batch)

    def close(self) -> None:
        """Release the network. A second call does nothing."""
        with self._lock:
            if self._enqueue is not None:
                self._enqueue = None
                self._on_close()

    def _run(self, chain: list[GpuRunner], batch: np.ndarray) -> np.ndarray:
        expected = tuple(chain[0]._frame.shape)
        if batch.ndim != FRAME_AXES or batch.shape[1:] != expected[1:]:
            raise RuntimeError(f"the network on the GPU takes frames of {expected}, not {batch.shape}")
        with gpu_errors():
            outputs = [self._run_frame(chain, frame) for frame in batch]
        return outputs[0] if len(outputs) == 1 else np.concatenate(outputs)

    def _run_frame(self, chain: list[GpuRunner], frame: np.ndarray) -> np.ndarray:
        """Run the networks one after the other on a frame (C, H, W); returns (1, ...)."""
        source = chain[0]._staged_frame
        np.copyto(source.numpy()[0], frame)
        try:
            with torch.cuda.stream(self._stream):
                for runner in chain:
                    runner._frame.copy_(source, non_blocking=True)
                    runner._start(self._stream.cuda_stream)
                    source = runner._output
                self._staged_output.copy_(source, non_blocking=True)
        finally:
            self._stream.synchronize()  # also after an exception: the work that has begun uses these buffers
        return self._staged_output.numpy().copy()

    def _start(self, stream: int) -> None:
        if self._enqueue is None:
            raise RuntimeError("the runner is closed")
        if not self._enqueue(stream):
            raise RuntimeError("the GPU did not take the network's work")
