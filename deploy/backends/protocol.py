"""The interface of a backend, the table of backends, and the comparison of a compiled with its eager network."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import nn

from calibrate.errors import RecaldError
from deploy.model.precision import PARITY_TOLERANCE
from deploy.model.program import relative_error

BACKENDS = {  # name in the configuration: module and class
    "eager": "deploy.backends.eager:EagerBackend",
    "onnx": "deploy.backends.onnx:OnnxBackend",
    "cuda": "deploy.backends.gpu.cuda:CudaBackend",
    "tensorrt": "deploy.backends.gpu.tensorrt:TensorRtBackend",
    "tensorrt-rtx": "deploy.backends.gpu.tensorrt:TensorRtRtxBackend",
}
GPU_BACKENDS = ("tensorrt", "tensorrt-rtx", "cuda")  # the fastest first
CPU_BACKEND = "onnx"
AUTO = "auto"  # instead of a name: the backend that suits this machine
NO_GPU_REASON = "there is no NVIDIA GPU, or this PyTorch is not built for one"

log = logging.getLogger(__name__)


class BackendUnavailable(RecaldError):
    """There is no such backend, its library is missing, or this machine cannot run it."""


class ParityError(RecaldError):
    """The compiled network does not compute what the eager network computes."""


class Runner(Protocol):
    """A loaded network. Several threads may call `run` at once. Call `close` when no `run` is under way."""

    def run(self, batch: np.ndarray) -> np.ndarray:
        """Run the network on a batch (N, C, H, W), float32; returns float32 (N, ...).

        Raises RuntimeError if the network fails or the runner is closed.
        """

    def close(self) -> None:
        """Release the network. A second call does nothing."""


class Backend(Protocol):
    """Compiles networks and runs them."""

    @property
    def name(self) -> str:
        """The backend's name in the configuration."""

    @property
    def stand_in(self) -> str | None:
        """The backend that serves while this one compiles Φ for minutes; None if compiling takes seconds."""

    def check_device(self) -> None:
        """Check that this machine can run what the backend compiles. Raises BackendUnavailable."""

    def compile(self, module: nn.Module, example: torch.Tensor) -> bytes:
        """Compile a network for images shaped like `example` (N, C, H, W); returns the bytes to store.

        Raises ModelError.
        """

    def load(self, compiled: bytes, threads: int) -> Runner:
        """Load compiled bytes into a runner that uses at most `threads` cores.

        Raises ModelError for bytes that this backend did not make.
        """

    def version(self) -> str:
        """Name all versions that the compiled bytes depend on. With another version they are built again."""


@runtime_checkable
class SharesKernels(Protocol):
    """A backend with one engine for all homogenizers of the same parts and frame shape: only their weights differ."""

    def with_weights_of(self, homogenizer: nn.Module, compiled: bytes) -> bytes:
        """Replace the weights in the compiled form of another homogenizer. Raises ModelError."""


def open_backend(asked: str) -> Backend:
    """Load the backend `asked`, or for "auto" the one that suits this machine. Raises BackendUnavailable."""
    name = asked
    if asked == AUTO:
        name, reason = choose_backend()
        log.info("backend %s: %s, because %s", asked, name, reason)
    backend = load_backend(name)
    backend.check_device()
    return backend


def choose_backend() -> tuple[str, str]:
    """Choose the backend that suits this machine; returns its name and the reason."""
    if not torch.cuda.is_available():
        return CPU_BACKEND, NO_GPU_REASON
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
    """Import the backend and its library. Raises BackendUnavailable with what to install."""
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
    """Check that the artefact with this manifest was compiled by the versions that are installed now."""
    versions = manifest.get("versions")
    return isinstance(versions, Mapping) and versions.get("backend") == backend.version()


def check_parity(
    runner: Runner,
    module: nn.Module,
    golden: torch.Tensor,
    tolerance: float = PARITY_TOLERANCE,
    before_each: Callable[[], None] = lambda: None,
) -> float:
    """Compare `runner` with the eager `module` on golden frames (N, C, H, W); returns the relative error.

    The frames are run one by one, as frames are served. before_each: called before each, to wait for a moment when
    this delays hardly any other. Raises ParityError for another output shape, for values that are not finite, and for
    an error above `tolerance`.
    """
    outputs, expectations = [], []
    for frame in golden.split(1):
        before_each()
        with torch.no_grad():
            expectations.append(module(frame).cpu())
        outputs.append(torch.tensor(runner.run(frame.cpu().numpy())))
    output, expected = torch.cat(outputs), torch.cat(expectations)
    if output.shape != expected.shape:
        raise ParityError(f"compiled output has shape {tuple(output.shape)}, eager {tuple(expected.shape)}")
    for name, values in (("compiled", output), ("eager", expected)):
        if not torch.isfinite(values).all():
            raise ParityError(f"the {name} output has values that are not finite")
    error = relative_error(output, expected)
    if error > tolerance:
        raise ParityError(f"compiled and eager output differ by {error:.1e}, tolerance {tolerance:.1e}")
    return error
