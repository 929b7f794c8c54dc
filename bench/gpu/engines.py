"""Engines that run a network on the GPU, as one kind of runner: recald's backends, and PyTorch's own ways."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, suppress
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.export.passes import move_to_device_pass

from bench.gpu.workload import CHAINED, HOMOGENIZER, NETWORK, Workload
from deploy.backends.gpu.runner import GpuRunner
from deploy.backends.protocol import load_backend
from deploy.model.program import evaluation_module, export_static

BACKENDS = ("cuda", "tensorrt", "tensorrt-rtx")
EAGER, INDUCTOR = "eager", "inductor"
ENGINES = (EAGER, *BACKENDS, INDUCTOR)
SLOW_TO_COMPILE = (INDUCTOR, "tensorrt")
WARM_UPS = 3

Call = Callable[[np.ndarray], np.ndarray]


class RunnerPair(NamedTuple):
    """ρ and Φ, ready to run."""

    homogenizer: GpuRunner
    network: GpuRunner

    def calls(self) -> dict[str, Call]:
        """Return the ways to run a frame, by name; each takes a frame and returns an output, both in host memory."""
        return {
            HOMOGENIZER: self.homogenizer.run,
            NETWORK: self.network.run,
            CHAINED: lambda frame: self.network.run_after(self.homogenizer, frame),
            "unchained": lambda frame: self.network.run(self.homogenizer.run(frame)),
        }


def open_pair(closing: ExitStack, engine: str, workload: Workload, precision: str) -> RunnerPair:
    """Open both networks in the engine and warm them up. Raises whatever the engine raises."""
    pair = RunnerPair(*(open_runner(closing, engine, workload, part, precision) for part in (HOMOGENIZER, NETWORK)))
    for call in pair.calls().values():
        for _ in range(WARM_UPS):
            call(workload.frames[0])
    return pair


def open_runner(closing: ExitStack, engine: str, workload: Workload, part: str, precision: str) -> GpuRunner:
    """Open one network in the engine; `closing` closes it. Raises whatever the engine raises."""
    if engine in BACKENDS:
        backend = load_backend(engine)
        backend.check_device()
        runner: Any = backend.load(workload.compiled(backend, part, precision), threads=1)
    else:
        module = _traced(workload, part, precision)
        compute: Any = torch.compile(module, dynamic=False) if engine == INDUCTOR else module
        runner = _runner(compute, workload.shape, captured=engine == INDUCTOR)
    closing.callback(runner.close)
    assert isinstance(runner, GpuRunner)
    return runner


def free_memory() -> None:
    """Free the card's memory of closed runners, which PyTorch would keep, also for graphs that are gone."""
    with suppress(RuntimeError):  # after a fault of the card nothing can be freed
        torch.cuda.empty_cache()


def _traced(workload: Workload, part: str, precision: str) -> nn.Module:
    """Return the network on the GPU, made of the same operators that the backend `cuda` captures."""
    program = export_static(workload.module(part, precision), torch.zeros(1, *workload.shape))
    return evaluation_module(move_to_device_pass(program, "cuda"))


def _runner(module: Callable[[Tensor], Tensor], shape: tuple[int, int, int], captured: bool) -> GpuRunner:
    """Make a runner that calls the module for each frame or, if captured, replays the kernels of one call."""
    frame = torch.zeros(1, *shape, device="cuda")
    with torch.no_grad():
        output = torch.empty(module(frame).shape, device="cuda")
    torch.cuda.synchronize()  # frame and weights were written on another stream

    def compute() -> None:
        with torch.no_grad():
            output.copy_(module(frame))

    replay = _capture(compute) if captured else compute

    def enqueue(_: int, kept: Any = compute) -> bool:
        replay()  # `kept` holds a reference to the memory that a replay reads
        return True

    return GpuRunner(frame, output, enqueue)


def _capture(compute: Callable[[], None]) -> Callable[[], None]:
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.stream(torch.cuda.Stream()):
        for _ in range(WARM_UPS):
            compute()
        graph.capture_begin(capture_error_mode="thread_local")
        try:
            compute()
        finally:
            graph.capture_end()
    torch.cuda.synchronize()
    return graph.replay
