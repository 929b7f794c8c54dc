"""Find and load NVIDIA's library under its two names, TensorRT and TensorRT for RTX, and collect its errors."""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from deploy.backends.protocol import BackendUnavailable

# NVIDIA publishes the Python API of TensorRT for RTX without the library. The second wheel carries the library.
RTX_BINDINGS, RTX_CARRIER = "tensorrt_rtx_bindings", "onnxruntime_ep_nv_tensorrt_rtx"
RTX_LIBRARY_FILES = ("libtensorrt_rtx.so*", "libtensorrt_onnxparser_rtx.so*")  # the parser needs the first


class TensorRtLibrary(NamedTuple):
    """One of the two libraries. Both have the same Python API, the module `api`."""

    name: str
    api: Any

    @property
    def version(self) -> str:
        return str(self.api.__version__)


def load_tensorrt() -> TensorRtLibrary:
    """Import TensorRT. Raises BackendUnavailable with what to install."""
    try:
        return TensorRtLibrary("TensorRT", importlib.import_module("tensorrt"))
    except Exception as error:  # an incomplete installation raises errors of any type
        raise BackendUnavailable(
            f"backend 'tensorrt' needs NVIDIA's TensorRT, which cannot be imported ({error}): "
            "on a Jetson install python3-libnvinfer, elsewhere pip install tensorrt"
        ) from error


def load_tensorrt_rtx() -> TensorRtLibrary:
    """Import NVIDIA's package of TensorRT for RTX, else the bindings with the library of another wheel.

    Raises BackendUnavailable with what to install.
    """
    try:
        if importlib.util.find_spec("tensorrt_rtx"):
            return TensorRtLibrary("TensorRT-RTX", importlib.import_module("tensorrt_rtx"))
        return TensorRtLibrary("TensorRT-RTX", _import_rtx_bindings())
    except Exception as error:
        raise BackendUnavailable(
            f"backend 'tensorrt-rtx' needs NVIDIA's TensorRT for RTX, which cannot be imported ({error}): "
            "pip install 'recald[tensorrt-rtx]'"
        ) from error


def error_listener(library: TensorRtLibrary) -> Any:
    """Make an ILogger that prints nothing and collects the texts of all errors in its list `errors`."""
    base: Any = library.api.ILogger

    class ErrorListener(base):
        def __init__(self) -> None:
            base.__init__(self)  # super() would not reach the constructor of a bound C++ class
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (base.INTERNAL_ERROR, base.ERROR):
                self.errors.append(message)

    return ErrorListener()


def _import_rtx_bindings() -> ModuleType:
    carrier = importlib.util.find_spec(RTX_CARRIER)
    if carrier is None or carrier.origin is None:
        raise ImportError(f"no module named {RTX_CARRIER!r}")
    for pattern in RTX_LIBRARY_FILES:
        for path in sorted(Path(carrier.origin).parent.glob(pattern)):
            ctypes.CDLL(str(path), ctypes.RTLD_GLOBAL)  # the bindings look for the libraries by name
    return importlib.import_module(RTX_BINDINGS)
