"""The CUDA backend: PyTorch's own kernels on the GPU, captured once in a CUDA graph and replayed for each frame."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.export.passes import move_to_device_pass

from deploy.backends.gpu.backend import FRAMES_INPUT, GpuBackend, GpuEngine
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

# At their first use libraries load kernels and allocate workspaces, which no graph may capture.
CAPTURE_WARM_UP_RUNS = 3


class CudaBackend(GpuBackend):
    """Stores a network as a torch.export program, and captures it in a CUDA graph when it is loaded."""

    name = "cuda"

    def version(self) -> str:
        return f"torch {torch.__version__}, {describe_gpu()}"

    def _build(self, program: ExportedProgram, inputs: Sequence[str]) -> bytes:
        return save_program(program)

    def _open(self, serialized: bytes) -> GpuEngine:
        # TF32 is float32 with a mantissa of ten bits. By default PyTorch uses it for convolutions.
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
        return CudaEngine(read_program(serialized))


class CudaEngine:
    """A network on the GPU. Its runners differ in their weights only.

    When a runner is closed, its graph serves the next runner, with other weights: PyTorch would keep the memory of a
    deleted graph until its whole cache is emptied, and so each swap would take more of the GPU's memory.
    """

    def __init__(self, program: ExportedProgram):
        self.shapes = input_shapes(program)
        self._module = evaluation_module(move_to_device_pass(program, "cuda"))
        self._idle: deque[_Graph] = deque()

    def runner(self, weights: Mapping[str, Tensor]) -> GpuRunner:
        """Make a runner with these weights, by their names. Raises ModelError if the capture fails."""
        try:
            graph = self._idle.pop()
        except IndexError:
            graph = self._capture()
        for name, tensor in weights.items():
            graph.inputs[name].copy_(tensor)
        torch.cuda.current_stream().synchronize()  # the weights were copied on this stream
        return GpuRunner(graph.inputs[FRAMES_INPUT], graph.output, graph.replay, lambda: self._idle.append(graph))

    def _capture(self) -> _Graph:
        inputs = {name: torch.zeros(shape, device="cuda") for name, shape in self.shapes.items()}
        try:
            return _Graph(self._module, inputs)
        except (torch.AcceleratorError, torch.OutOfMemoryError):  # not a fault of the network
            raise
        except NETWORK_ERRORS as error:
            raise ModelError(f"its kernels cannot be captured into a CUDA graph: {first_line(error)}") from error


class _Graph:
    """The captured kernels for one frame, and the tensors that they read and write."""

    def __init__(self, module: nn.Module, inputs: dict[str, Tensor]):
        self.inputs, self._module, self._graph = inputs, module, torch.cuda.CUDAGraph()
        torch.cuda.current_stream().synchronize()  # weights and inputs were written on this stream
        # A stream of high priority: PyTorch hands out its normal streams again and again, and runners have those.
        stream = torch.cuda.Stream(priority=-1)
        with torch.no_grad(), torch.cuda.stream(stream):
            for _ in range(CAPTURE_WARM_UP_RUNS):
                module(*inputs.values())
            # `torch.cuda.graph` would collect garbage first, while other threads wait. They go on serving frames.
            self._graph.capture_begin(capture_error_mode="thread_local")
            try:
                # Converted inside the graph. Else each copy of the output would convert it.
                self.output: Tensor = module(*inputs.values()).float().contiguous()
            finally:
                self._graph.capture_end()
        stream.synchronize()

    def replay(self, stream: int) -> bool:
        """Run the kernels on the current stream, which is the one with this handle."""
        self._graph.replay()
        return True
