"""The CUDA backend: PyTorch's own kernels on the GPU, captured once into a CUDA graph and replayed for each frame."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram
from torch.export.passes import move_to_device_pass

from deploy.gpu import describe_gpu, gpu_errors, require_gpu
from deploy.gpu_runner import GpuRunner
from deploy.program import (
    FAULTS,
    ModelError,
    evaluating,
    export_static,
    first_line,
    image_shape,
    read_program,
    save_program,
)

WARM_UPS = 3  # libraries load their kernels and workspaces at first use, which no graph may capture


class CudaBackend:
    name = "cuda"
    stand_in = None

    def check_device(self) -> None:
        require_gpu(self.name)

    def compile(self, module: nn.Module, example: torch.Tensor) -> bytes:
        return save_program(export_static(module, example[:1]))

    def load(self, compiled: bytes, threads: int) -> GpuRunner:
        """Needs the GPU; `threads` is for processors. Raises BackendUnavailable, ModelError, OSError."""
        self.check_device()
        torch.backends.cudnn.allow_tf32 = False  # on by default: float32 with a mantissa of ten bits
        program = read_program(compiled)
        try:
            with gpu_errors():
                return _capture(program)
        except FAULTS as error:
            raise ModelError(f"its kernels cannot be captured into a CUDA graph: {first_line(error)}") from error

    def version(self) -> str:
        return f"torch {torch.__version__}, {describe_gpu()}"


def _capture(program: ExportedProgram) -> GpuRunner:
    """The kernels of one frame, with fixed memory for it and for the output."""
    frame = torch.zeros(image_shape(program), device="cuda")
    module = evaluating(move_to_device_pass(program, "cuda"))
    stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    torch.cuda.current_stream().synchronize()  # where frame and weights were written
    with torch.no_grad(), torch.cuda.stream(stream):
        for _ in range(WARM_UPS):
            module(frame)
        # Other threads go on serving meanwhile. `torch.cuda.graph` would collect garbage here, and keep them waiting.
        graph.capture_begin(capture_error_mode="thread_local")
        try:
            output = module(frame).float().contiguous()  # else each copy of it would be converted
        finally:
            graph.capture_end()
    stream.synchronize()

    def enqueue(_: int, kept: Any = (module, frame)) -> bool:
        """Replays on the current stream; `kept`: memory that the graph reads."""
        graph.replay()
        return True

    return GpuRunner(frame, output, enqueue)
