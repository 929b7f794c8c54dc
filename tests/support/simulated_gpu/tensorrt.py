"""Simulate NVIDIA's TensorRT over the simulated GPU: an engine is the ONNX model from which it was built.

With the folder of this module in PYTHONPATH a process has a GPU with TensorRT.
"""

from __future__ import annotations

import ctypes
import enum
import os
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import onnx
import onnxruntime
import simulated_cuda
import torch

__version__ = "10.0.simulated"
MARK = b"engine:"
for _name, _stand_in in simulated_cuda.STAND_INS.items():
    patch(_name, _stand_in).start()


class ILogger:
    INTERNAL_ERROR, ERROR = 0, 1

    def __init__(self, own: Any = None) -> None: ...


class TensorIOMode(enum.Enum):
    INPUT, OUTPUT = 1, 2


class NetworkDefinitionCreationFlag(enum.IntEnum):
    STRONGLY_TYPED = 1


class BuilderFlag(enum.Enum):
    TF32 = 1


def _file_exists(variable: str) -> bool:
    return Path(os.environ.get(variable, "/nonexistent")).exists()


class Builder:
    """Builds for RECALD_TEST_BUILD_S seconds. Refuses every network if the file RECALD_TEST_REFUSE exists."""

    def __init__(self, logger: ILogger):
        self.logger = logger

    def create_network(self, flags: int) -> SimpleNamespace:
        assert flags == 1 << NetworkDefinitionCreationFlag.STRONGLY_TYPED
        return SimpleNamespace(model=b"")

    def create_builder_config(self) -> Any:
        return SimpleNamespace(clear_flag=lambda flag: None)

    def build_serialized_network(self, network: SimpleNamespace, config: Any) -> bytes | None:
        if _file_exists("RECALD_TEST_REFUSE"):
            self.logger.log(ILogger.ERROR, "no kernel for this layer")
            return None
        time.sleep(float(os.environ.get("RECALD_TEST_BUILD_S", "0")))
        return MARK + network.model


class OnnxParser:
    num_errors = 1

    def __init__(self, network: SimpleNamespace, logger: ILogger):
        self._network = network

    def parse(self, model: bytes) -> bool:
        self._network.model = model
        return bool(model)


class Runtime:
    def __init__(self, logger: ILogger):
        self._logger = logger

    def deserialize_cuda_engine(self, serialized: bytes) -> Engine | None:
        if not serialized.startswith(MARK):
            self._logger.log(ILogger.ERROR, "magic tag does not match")
            return None
        return Engine(serialized.removeprefix(MARK))


class Engine:
    def __init__(self, model: bytes):
        self.session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
        graph = onnx.load_from_string(model).graph
        self._shapes = {t.name: tuple(d.dim_value for d in t.type.tensor_type.shape.dim) for t in graph.input}
        self.outputs = [tensor.name for tensor in graph.output]
        self._shapes |= {t.name: tuple(d.dim_value for d in t.type.tensor_type.shape.dim) for t in graph.output}
        self.num_io_tensors = len(self._shapes)

    def get_tensor_name(self, index: int) -> str:
        return list(self._shapes)[index]

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return TensorIOMode.OUTPUT if name in self.outputs else TensorIOMode.INPUT

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self._shapes[name]

    def create_execution_context(self) -> ExecutionContext:
        return ExecutionContext(self)


class ExecutionContext:
    def __init__(self, engine: Engine):
        self._engine = engine
        self._addresses: dict[str, int] = {}

    def set_tensor_address(self, name: str, address: int) -> bool:
        self._addresses[name] = address
        return True

    def execute_async_v3(self, handle: int) -> bool:
        if len(self._addresses) < self._engine.num_io_tensors:
            return False
        simulated_cuda.by_handle(handle).put(self._execute)
        return True

    def _execute(self) -> None:
        if _file_exists("RECALD_TEST_LOST"):
            raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")
        (output,) = self._engine.outputs
        given = {name: self._memory(name) for name in self._addresses if name != output}
        self._memory(output)[...] = self._engine.session.run([output], given)[0]

    def _memory(self, name: str) -> np.ndarray:
        shape = self._engine.get_tensor_shape(name)
        values = (ctypes.c_float * int(np.prod(shape))).from_address(self._addresses[name])
        return np.ctypeslib.as_array(values).reshape(shape)
