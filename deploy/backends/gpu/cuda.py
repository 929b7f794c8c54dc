"""The CUDA backend: PyTorch's own kernels on the GPU, captured once into a CUDA graph and replayed for each frame."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.export.passes import move_to_device_pass

from deploy.backends.gpu.backend import FRAMES, Engine, GpuBackend
from deploy.backends.gpu.device import describe_gpu
from deploy.backends.gpu.runner import GpuRunner
from deploy.model.program import (
    NETWORK_ERRORS,
    ModelError,
    evaluation_module,
    first_line,
    input_shapes,
    read_program,
    save_program,
)

WARM_UPS = 3  # libraries load their kernels and workspaces at first use, which no graph may capture


class CudaBackend(GpuBackend):
    name = "cuda"

    def version(self) -> str:
        return f"torch {torch.__version__}, {describe_gpu()}"

    def _build(self, program: ExportedProgram, inputs: Sequence[str]) -> bytes:
        return save_program(program)

    def _open(self, serialized: bytes) -> Engine:
        # TF32, float32 with a mantissa of ten bits, is on by default for convolutions.
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
        return CudaEngine(read_program(serialized))


class CudaEngine:
    """A network on the GPU; runners differ in their weights alone.

    A graph whose runner was closed serves the next one, with other weights: PyTorch keeps the memory of a graph that
    is gone until all its cache is emptied, which would let swaps eat up the GPU.
    """

    def __init__(self, program: ExportedProgram):
        self.shapes = input_shapes(program)
        self._module = evaluation_module(move_to_device_pass(program, "cuda"))
        self._idle: deque[_Graph] = deque()

    def runner(self, weights: Mapping[str, Tensor]) -> GpuRunner:
        graph = self._graph()
        for name, tensor in weights.items():
            graph.inputs[name].copy_(tensor)
        torch.cuda.current_stream().synchronize()  # where they were copied
        return GpuRunner(graph.inputs[FRAMES], graph.output, graph.replay, lambda: self._idle.append(graph))

    def _graph(self) -> _Graph:
        try:
            return self._idle.pop()
        except IndexError:
            return self._capture()

    def _capture(self) -> _Graph:
        inputs = {name: torch.zeros(shape, device="cuda") for name, shape in self.shapes.items()}
        try:
            return _Graph(self._module, inputs)
        except (torch.AcceleratorError, torch.OutOfMemoryError):  # it is not the network's fault
            raise
        except NETWORK_ERRORS as error:
            raise ModelError(f"its kernels cannot be captured into a CUDA graph: {first_line(error)}") from error


class _Graph:
    """The kernels of one frame, and the memory that they read and write."""

    def __init__(self, module: nn.Module, inputs: dict[str, Tensor]):
        self.inputs, self._module, self._graph = inputs, module, torch.cuda.CUDAGraph()
        torch.cuda.current_stream().synchronize()  # where weights and inputs were written
        stream = torch.cuda.Stream(priority=-1)  # of those with priority, as PyTorch hands out the others again
        with torch.no_grad(), torch.cuda.stream(stream):
            for _ in range(WARM_UPS):
                module(*inputs.values())
            # Others go on serving. `torch.cuda.graph` would collect garbage here, and keep them waiting.
            self._graph.capture_begin(capture_error_mode="thread_local")
            try:
                self.output: Tensor = module(*inputs.values()).float().contiguous()  # else each copy would convert it
            finally:
                self._graph.capture_end()
        stream.synchronize()

    def replay(self, _: int) -> bool:
        """On the current stream."""
        self._graph.replay()
        return True
