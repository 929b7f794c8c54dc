"""The eager backend: PyTorch itself runs the traced program; the reference for the others."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from deploy.model.program import NETWORK_ERRORS, export_program, first_line, load_program, save_program


class EagerBackend:
    name = "eager"
    stand_in = None

    def check_device(self) -> None:
        """Every machine has a processor."""

    def compile(self, module: nn.Module, example: torch.Tensor) -> bytes:
        return save_program(export_program(module, example))

    def load(self, compiled: bytes, threads: int) -> EagerRunner:
        torch.set_num_threads(threads)  # PyTorch has one setting for the whole process
        return EagerRunner(load_program(compiled))

    def version(self) -> str:
        return f"torch {torch.__version__}"


class EagerRunner:
    def __init__(self, module: nn.Module) -> None:
        self._module: nn.Module | None = module

    def run(self, batch: np.ndarray) -> np.ndarray:
        module = self._module
        if module is None:
            raise RuntimeError("the runner is closed")
        try:
            with torch.inference_mode():
                # a copy, so that the caller may reuse its buffer while the output is still being read
                output: np.ndarray = module(torch.tensor(batch)).numpy()
        except NETWORK_ERRORS as error:
            raise RuntimeError(f"eager run failed: {first_line(error)}") from error
        return output

    def close(self) -> None:
        self._module = None
