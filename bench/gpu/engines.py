"""All that may run a network on the GPU, as one kind of runner: recald's backends, and what PyTorch itself offers."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, suppress
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.export.passes import move_to_device_pass

from bench.gpu.material import HOMOGENIZER, NETWORK, Material
from deploy.backends.gpu.runner import GpuRunner
from deploy.backends.protocol import load_backend
from deploy.model.program import evaluating, export_static

BACKENDS = ("cuda", "tensorrt", "tensorrt-rtx")
EAGER, INDUCTOR = "eager", "inductor"
ENGINES = (EAGER, *BACKENDS, INDUCTOR)
SLOW = (INDUCTOR, "tensorrt")  # they take long to compile
WARM_UPS = 3

Call = Callable[[np.ndarray], np.ndarray]


class Pair(NamedTuple):
    """ρ and Φ, ready to run."""

    homogenizer: GpuRunner
    network: GpuRunner

    def calls(self) -> dict[str, Call]:
        """From a frame to what comes out, both on the processor's side."""
        return {
            HOMOGENIZER: self.homogenizer.run,
            NETWORK: self.network.run,
            "chained": lambda frame: self.network.run_after(self.homogenizer, frame),
            "unchained": lambda frame: self.network.run(self.homogenizer.run(frame)),
        }


def open_pair(closing: ExitStack, engine: str, material: Material, precision: str) -> Pair:
    """Both networks in an engine of this name, warmed up. Raises whatever the engine raises."""
    pair = Pair(*(open_runner(closing, engine, material, part, precision) for part in (HOMOGENIZER, NETWORK)))
    for call in pair.calls().values():
        for _ in range(WARM_UPS):
            call(material.frames[0])
    return pair


def open_runner(closing: ExitStack, engine: str, material: Material, part: str, precision: str) -> GpuRunner:
    if engine in BACKENDS:
        backend = load_backend(engine)
        backend.check_device()
        runner: Any = backend.load(material.compiled(backend, part, precision), threads=1)
    else:
        module = _traced(material, part, precision)
        compute: Any = torch.compile(module, dynamic=False) if engine == INDUCTOR else module
        runner = _runner(compute, material.shape, captured=engine == INDUCTOR)
    closing.callback(runner.close)
    assert isinstance(runner, GpuRunner)
    return runner


def free_memory() -> None:
    """Give back what closed runners left on the card, which PyTorch keeps for graphs that are gone, too."""
    with suppress(RuntimeError):  # after a fault of the card there is nothing to give back
        torch.cuda.empty_cache()


def _traced(material: Material, part: str, precision: str) -> nn.Module:
    """On the GPU, of the very operators that the backend `cuda` captures."""
    program = export_static(material.module(part, precision), torch.zeros(1, *material.shape))
    return evaluating(move_to_device_pass(program, "cuda"))


def _runner(module: Callable[[Tensor], Tensor], shape: tuple[int, int, int], captured: bool) -> GpuRunner:
    """Calls the module anew for each frame, or replays the kernels of one call."""
    frame = torch.zeros(1, *shape, device="cuda")
    with torch.no_grad():
        output = torch.empty(module(frame).shape, device="cuda")
    torch.cuda.synchronize()  # frame and weights were written on another stream

    def compute() -> None:
        with torch.no_grad():
            output.copy_(module(frame))

    replay = _capture(compute) if captured else compute

    def enqueue(_: int, kept: Any = compute) -> bool:
        """`kept`: memory that is read."""
        replay()
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
