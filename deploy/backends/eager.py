"""The eager backend: PyTorch runs the traced program. It is the reference for all other backends."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from deploy.model.program import NETWORK_ERRORS, export_program, first_line, load_program, save_program


class EagerBackend:
    """Implements the Backend protocol on the processor."""

    name = "eager"
    stand_in = None
    _threads = 1  # the most that any network of this process was loaded with

    def check_device(self) -> None:
        """Nothing to check: every machine has a processor."""

    def compile(self, module: nn.Module, example: torch.Tensor) -> bytes:
        return save_program(export_program(module, example))

    def load(self, compiled: bytes, threads: int) -> EagerRunner:
        # PyTorch has one setting for all networks of a thread: a homogenizer that asks for one core must not take
        # those of the model that was loaded before it.
        EagerBackend._threads = max(threads, EagerBackend._threads)
        torch.set_num_threads(EagerBackend._threads)
        return EagerRunner(load_program(compiled))

    def version(self) -> str:
        return f"torch {torch.__version__}"


class EagerRunner:
    """Implements the Runner protocol."""

    def __init__(self, module: nn.Module) -> None:
        self._module: nn.Module | None = module

    def run(self, batch: np.ndarray) -> np.ndarray:
        module = self._module
        if module is None:
            raise RuntimeError("the runner is closed")
        try:
            with torch.inference_mode():
                # The batch is copied, as the output may share its memory and the caller may reuse its buffer.
                output: np.ndarray = module(torch.tensor(batch)).numpy()
        except NETWORK_ERRORS as error:
            raise RuntimeError(f"eager run failed: {first_line(error)}") from error
        return output

    def close(self) -> None:
        self._module = None
