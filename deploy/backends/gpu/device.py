"""The NVIDIA GPU and driver of this machine, and the errors of a GPU."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from deploy.backends.protocol import BackendUnavailable
from deploy.model.program import first_line

DRIVER_VERSION_FILE = Path("/proc/driver/nvidia/version")


class GpuLost(OSError):
    """The GPU failed, and CUDA refuses all further work of this process. Only a restart of the process helps."""


def require_gpu(user: str) -> None:
    """Check that this process can use a GPU. Raises BackendUnavailable, which says what to install.

    user: what needs it, as the configuration names it.
    """
    if not torch.cuda.is_available():
        raise BackendUnavailable(f"{user} needs an NVIDIA GPU: {_explain_missing_gpu()}")


def describe_gpu() -> str:
    """Name all that kernels are chosen for: the GPU, the driver and the CUDA version.

    GPUs of one name differ: a part with fewer multiprocessors, or one that is split (MIG).
    """
    if not torch.cuda.is_available():
        return "no GPU"
    major, minor = torch.cuda.get_device_capability()
    count = torch.cuda.get_device_properties(torch.cuda.current_device()).multi_processor_count
    gpu = f"{torch.cuda.get_device_name()}, compute capability {major}.{minor}, {count} multiprocessors"
    return f"{gpu}, driver {nvidia_driver_version()}, CUDA {torch.version.cuda}"


def nvidia_driver_version(path: Path = DRIVER_VERSION_FILE) -> str | None:
    """Read the driver's version, such as 570.86.10.

    Returns "of unknown version" if the file does not name it, None if there is no driver.
    """
    try:
        text = path.read_text()
    except OSError:
        return None
    found = re.search(r"\d+\.\d+(\.\d+)*", text)
    return found[0] if found else "of unknown version"


@contextmanager
def gpu_errors() -> Iterator[None]:
    """Turn faults of the GPU into GpuLost, and missing memory into OSError.

    Neither is a fault of the network: another process or a later time may be without it.
    """
    try:
        yield
    except torch.AcceleratorError as error:
        raise GpuLost(f"the GPU failed: {first_line(error)}") from error
    except torch.OutOfMemoryError as error:
        raise OSError(errno.ENOMEM, f"the GPU has no memory left: {first_line(error)}") from error


def _explain_missing_gpu() -> str:
    driver = nvidia_driver_version()
    if driver is None:
        return "there is none with NVIDIA's driver; choose onnx, or install the driver"
    if torch.version.cuda is None:
        return f"driver {driver} is here, but torch {torch.__version__} is not built for CUDA; install one that is"
    return f"torch {torch.__version__} (CUDA {torch.version.cuda}) does not find one behind driver {driver}"
