"""Describes this machine and the installed libraries.

Own code: psutil knows neither the CPU's name nor a Jetson, so only one line would go; torch.utils.collect_env starts
compilers, nvidia-smi and pip, takes a second, and answers in free text.
"""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from daemon import __version__
from daemon.operator.memory import GIB
from daemon.worker.machine_memory import total_memory
from deploy.backends.gpu.device import nvidia_driver_version

JETSON_RELEASE_FILE = Path("/etc/nv_tegra_release")


def describe_machine() -> dict[str, Any]:
    """Return hardware and versions, JSON-able; None for what does not exist here."""
    jetson = JETSON_RELEASE_FILE
    return {
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(total_memory() / GIB, 1),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "driver": nvidia_driver_version(),
        "jetson": jetson.read_text().partition("\n")[0] if jetson.exists() else None,
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "onnxruntime": _package_version("onnxruntime"),
        "recald": __version__,
    }


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())  # ARM kernels print no model name


def _package_version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
