"""The NVIDIA GPU of this machine, as PyTorch sees it."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from deploy.backends.protocol import BackendUnavailable
from deploy.model.program import first_line

DRIVER = Path("/proc/driver/nvidia/version")


class GpuLost(OSError):
    """The GPU failed in a way that ends its use by this process: CUDA refuses all that follows."""


@contextmanager
def gpu_errors() -> Iterator[None]:
    """Tell what another process or a later time may cure from what is wrong with the network: GpuLost, OSError."""
    try:
        yield
    except torch.AcceleratorError as error:
        raise GpuLost(f"the GPU failed: {first_line(error)}") from error
    except torch.OutOfMemoryError as error:
        raise OSError(errno.ENOMEM, f"the GPU has no memory left: {first_line(error)}") from error


def require_gpu(backend: str) -> None:
    """Raise BackendUnavailable, which says what to install, where this process cannot use a GPU."""
    if not torch.cuda.is_available():
        raise BackendUnavailable(f"backend {backend!r} needs an NVIDIA GPU: {_why_none()}")


def describe_gpu() -> str:
    """The GPU and driver that kernels are chosen for."""
    if not torch.cuda.is_available():
        return "no GPU"
    return f"{torch.cuda.get_device_name()}, driver {nvidia_driver_version()}, CUDA {torch.version.cuda}"


def _why_none() -> str:
    driver = nvidia_driver_version()
    if driver is None:
        return "there is none with NVIDIA's driver; choose onnx, or install the driver"
    if torch.version.cuda is None:
        return f"driver {driver} is here, but torch {torch.__version__} is not built for CUDA; install one that is"
    return f"torch {torch.__version__} (CUDA {torch.version.cuda}) does not find one behind driver {driver}"


def nvidia_driver_version(path: Path = DRIVER) -> str | None:
    """Its version, such as 570.86.10; "of unknown version" where it does not say, None where there is none."""
    try:
        text = path.read_text()
    except OSError:
        return None
    found = re.search(r"\d+\.\d+(\.\d+)*", text)
    return found[0] if found else "of unknown version"
