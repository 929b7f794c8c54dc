"""Let a fit run well on a GPU: on a stream of its own, with the same kernels each time, and with few launches.

A GPU computes a step of a fit in a millisecond, but Python takes tens of them to launch its thousand kernels. So the
kernels of a step are captured once, in a CUDA graph, and replayed with one launch. On the processor all of this does
nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache

import torch
from torch import Tensor


@contextmanager
def fit_stream(device: torch.device) -> Iterator[None]:
    """Run the work of the body on a stream of its own, of the lowest priority, with kernels that repeat exactly.

    By default PyTorch computes convolutions in TF32, float32 with ten bits of mantissa, and may add in another order in
    each run. The equations of calibrate.source need the bits, and the same seed must give the same homogenizer.
    """
    if device.type != "cuda":
        yield
        return
    stream, outside = _stream(device), torch.cuda.current_stream(device)
    stream.wait_stream(outside)
    try:
        with _exact_kernels(), torch.cuda.stream(stream):
            yield
    finally:
        outside.wait_stream(stream)
        torch.cuda.empty_cache()  # PyTorch would keep the memory of each captured graph, and no capture can free it


@cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    """Return the one stream of all fits: libraries keep workspaces of 70 MB for each stream that they have seen."""
    return torch.cuda.Stream(device, priority=0)


@contextmanager
def _exact_kernels() -> Iterator[None]:
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.deterministic, cudnn.benchmark, cudnn.allow_tf32, matmul.allow_tf32
    cudnn.deterministic, cudnn.benchmark, cudnn.allow_tf32, matmul.allow_tf32 = True, False, False, False
    try:
        yield
    finally:
        cudnn.deterministic, cudnn.benchmark, cudnn.allow_tf32, matmul.allow_tf32 = before


def replayable(function: Callable[[], Tensor], captured: bool) -> Callable[[], Tensor]:
    """Return a function that does the same: if `captured`, by replaying the kernels of one call on a GPU.

    function: must read tensors that stay where they are, must not copy from the processor, and must not look at a
    result. It must be called inside `fit_stream`. Each replay overwrites the tensor that the one before returned.
    """
    return _Replay(function) if captured else function


class _Replay:
    """The captured kernels of a function, and the tensor that they write."""

    def __init__(self, function: Callable[[], Tensor]):
        self._function = function  # keeps the tensors that the kernels read
        function()  # libraries load kernels and allocate workspaces at their first use, which no graph may capture
        self._graph = torch.cuda.CUDAGraph()
        # `torch.cuda.graph` would collect garbage and empty the cache first, which takes longer than the capture.
        self._graph.capture_begin(capture_error_mode="thread_local")
        try:
            self._output = function()
        except BaseException:
            with suppress(RuntimeError):  # the capture has failed too, of which the error above is the cause
                self._graph.capture_end()
            raise
        self._graph.capture_end()

    def __call__(self) -> Tensor:
        self._graph.replay()
        return self._output
