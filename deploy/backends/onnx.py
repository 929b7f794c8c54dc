"""The ONNX backend: ONNX Runtime runs the exported program. It is the default without a GPU."""

from __future__ import annotations

import numpy as np
import onnxruntime
import torch
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors
from torch import nn

from deploy.backends.onnx_export import to_onnx
from deploy.model.program import NETWORK_ERRORS, ModelError, export_program, first_line

# The exceptions of ONNX Runtime have no common base class.
ONNX_RUNTIME_ERRORS: tuple[type[Exception], ...] = (
    *(kind for kind in vars(ort_errors).values() if isinstance(kind, type) and issubclass(kind, Exception)),
    *NETWORK_ERRORS,
)
ERROR_SEVERITY = 3  # of ONNX Runtime's log: errors only


class OnnxBackend:
    """Implements the Backend protocol on the processor."""

    name = "onnx"
    stand_in = None

    def check_device(self) -> None:
        """Nothing to check: every machine has a processor."""

    def compile(self, module: nn.Module, example: torch.Tensor) -> bytes:
        return to_onnx(export_program(module, example))

    def load(self, compiled: bytes, threads: int) -> OnnxRunner:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        options.log_severity_level = ERROR_SEVERITY
        # A thread that spins while it waits for the next frame takes a core from the decoder and from the fit.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            session = onnxruntime.InferenceSession(compiled, options, providers=["CPUExecutionProvider"])
        except ONNX_RUNTIME_ERRORS as error:
            raise ModelError(f"ONNX Runtime cannot load the compiled network: {first_line(error)}") from error
        return OnnxRunner(session)

    def version(self) -> str:
        return f"onnxruntime {onnxruntime.__version__}, torch {torch.__version__}"


class OnnxRunner:
    """Implements the Runner protocol."""

    def __init__(self, session: onnxruntime.InferenceSession) -> None:
        self._session: onnxruntime.InferenceSession | None = session
        self._input = session.get_inputs()[0].name

    def run(self, batch: np.ndarray) -> np.ndarray:
        session = self._session
        if session is None:
            raise RuntimeError("the runner is closed")
        try:
            output: np.ndarray = session.run(None, {self._input: batch})[0]
        except ONNX_RUNTIME_ERRORS as error:
            raise RuntimeError(f"ONNX Runtime failed: {first_line(error)}") from error
        return output

    def close(self) -> None:
        self._session = None
