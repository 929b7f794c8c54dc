"""NVIDIA's library under its two names, TensorRT and TensorRT for RTX: found, loaded, and heard when it complains."""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from deploy.backends.protocol import BackendUnavailable

# The wheel of the Python API is without the library; this one carries it.
RTX_BINDINGS, RTX_CARRIER = "tensorrt_rtx_bindings", "onnxruntime_ep_nv_tensorrt_rtx"
RTX_LIBRARIES = ("libtensorrt_rtx.so*", "libtensorrt_onnxparser_rtx.so*")  # the parser needs the first


class Library(NamedTuple):
    """api: NVIDIA's Python module, the same for both but for its name."""

    name: str
    api: Any

    @property
    def version(self) -> str:
        return str(self.api.__version__)


def load_tensorrt() -> Library:
    """Raises BackendUnavailable."""
    try:
        return Library("TensorRT", importlib.import_module("tensorrt"))
    except Exception as error:  # a library that is half there raises whatever it likes
        raise BackendUnavailable(
            f"backend 'tensorrt' needs NVIDIA's TensorRT, which cannot be imported ({error}): "
            "on a Jetson install python3-libnvinfer, elsewhere pip install tensorrt"
        ) from error


def load_tensorrt_rtx() -> Library:
    """NVIDIA's own package where it is, else the bindings over the library of another wheel.

    Raises BackendUnavailable.
    """
    try:
        if importlib.util.find_spec("tensorrt_rtx"):
            return Library("TensorRT-RTX", importlib.import_module("tensorrt_rtx"))
        return Library("TensorRT-RTX", _rtx_bindings())
    except Exception as error:
        raise BackendUnavailable(
            f"backend 'tensorrt-rtx' needs NVIDIA's TensorRT for RTX, which cannot be imported ({error}): "
            "pip install 'recald[tensorrt-rtx]'"
        ) from error


def _rtx_bindings() -> ModuleType:
    carrier = importlib.util.find_spec(RTX_CARRIER)
    if carrier is None or carrier.origin is None:
        raise ImportError(f"no module named {RTX_CARRIER!r}")
    for pattern in RTX_LIBRARIES:
        for path in sorted(Path(carrier.origin).parent.glob(pattern)):
            ctypes.CDLL(str(path), ctypes.RTLD_GLOBAL)  # the bindings look for them by name
    return importlib.import_module(RTX_BINDINGS)


def listener(library: Library) -> Any:
    """A logger that prints nothing; `errors` are the messages so far that were errors."""
    base: Any = library.api.ILogger

    class Listener(base):
        def __init__(self) -> None:
            base.__init__(self)  # super() would not reach the constructor of a bound C++ class
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (base.INTERNAL_ERROR, base.ERROR):
                self.errors.append(message)

    return Listener()
