"""What a backend is, the table of backends, and the proof that compiled and eager network agree."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import nn

from calibrate.errors import RecaldError
from deploy.model.precision import PARITY_TOLERANCE
from deploy.model.program import relative_error

BACKENDS = {
    "eager": "deploy.backends.eager:EagerBackend",
    "onnx": "deploy.backends.onnx:OnnxBackend",
    "cuda": "deploy.backends.gpu.cuda:CudaBackend",
    "tensorrt": "deploy.backends.gpu.tensorrt:TensorRtBackend",
    "tensorrt-rtx": "deploy.backends.gpu.tensorrt:TensorRtRtxBackend",
}
GPU_BACKENDS = ("tensorrt", "tensorrt-rtx", "cuda")  # the best first
CPU_BACKEND = "onnx"
AUTO = "auto"  # in place of a backend's name: the one that suits the machine
NO_GPU = "there is no NVIDIA GPU, or this PyTorch is not built for one"

log = logging.getLogger(__name__)


class BackendUnavailable(RecaldError):
    """No such backend, or its library is not installed."""


class ParityError(RecaldError):
    """The compiled network does not compute what the eager one computes."""


class Runner(Protocol):
    """A loaded network. `run` may be called by several threads at once, `close` once no call is under way."""

    def run(self, batch: np.ndarray) -> np.ndarray:
        """(N, C, H, W) float32 in, float32 out; RuntimeError when it fails or the runner is closed."""

    def close(self) -> None: ...


class Backend(Protocol):
    @property
    def name(self) -> str: ...

    @property
    def stand_in(self) -> str | None:
        """Names the backend that serves while this one takes minutes to compile Φ; None: it takes seconds."""

    def check_device(self) -> None:
        """Raise BackendUnavailable where what this backend compiles cannot run on this machine."""

    def compile(self, module: nn.Module, example: torch.Tensor) -> bytes:
        """The network for images shaped like `example` (N, C, H, W), in a form to be stored; ModelError."""

    def load(self, compiled: bytes, threads: int) -> Runner:
        """A runner on at most `threads` cores; ModelError for bytes that are not of this backend's making."""

    def version(self) -> str:
        """Names what made the compiled form; where it differs, the form is built again."""


@runtime_checkable
class SharesKernels(Protocol):
    """A backend whose compiled homogenizers, of one shape of frames, may differ in their weights alone."""

    def with_weights_of(self, homogenizer: nn.Module, compiled: bytes) -> bytes:
        """The compiled form of another homogenizer, with these weights in place of its own; ModelError."""


def open_backend(asked: str) -> Backend:
    """The backend asked for, or for "auto" the one that suits this machine; BackendUnavailable where it cannot run."""
    name = asked
    if asked == AUTO:
        name, why = choose_backend()
        log.info("backend %s: %s, because %s", asked, name, why)
    backend = load_backend(name)
    backend.check_device()
    return backend


def choose_backend() -> tuple[str, str]:
    """The name of the backend that suits this machine, and why."""
    if not torch.cuda.is_available():
        return CPU_BACKEND, NO_GPU
    refused = []
    for name in GPU_BACKENDS:
        try:
            load_backend(name).check_device()
        except BackendUnavailable as error:
            refused.append(str(error))
        else:
            return name, f"there is {torch.cuda.get_device_name()}"
    return CPU_BACKEND, "; ".join(refused)


def load_backend(name: str) -> Backend:
    if name not in BACKENDS:
        raise BackendUnavailable(f"backend {name!r} is not known: choose one of {', '.join([*sorted(BACKENDS), AUTO])}")
    module_name, _, class_name = BACKENDS[name].partition(":")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        library = error.name or name
        raise BackendUnavailable(
            f"backend {name!r} needs {library}, which cannot be imported ({error}): pip install {library}"
        ) from error
    backend: Backend = getattr(module, class_name)()
    return backend


def same_backend_version(backend: Backend, manifest: Mapping[str, Any]) -> bool:
    """Whether the compiled form that this manifest belongs to was made by the same versions of everything."""
    versions = manifest.get("versions")
    return isinstance(versions, Mapping) and versions.get("backend") == backend.version()


def check_parity(runner: Runner, module: nn.Module, golden: torch.Tensor, tolerance: float = PARITY_TOLERANCE) -> float:
    """Compare `runner` with the eager `module` on the golden frames (N, C, H, W); returns the relative error.

    Raises ParityError for another shape, for values that are not finite, and for an error above `tolerance`.
    """
    with torch.no_grad():
        expected = module(golden).cpu()
    output = torch.tensor(runner.run(golden.cpu().numpy()))
    if output.shape != expected.shape:
        raise ParityError(f"compiled output has shape {tuple(output.shape)}, eager {tuple(expected.shape)}")
    for name, values in (("compiled", output), ("eager", expected)):
        if not torch.isfinite(values).all():
            raise ParityError(f"the {name} output has values that are not finite")
    error = relative_error(output, expected)
    if error > tolerance:
        raise ParityError(f"compiled and eager output differ by {error:.1e}, tolerance {tolerance:.1e}")
    return error
