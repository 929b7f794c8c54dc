"""Asks NVIDIA's driver about its GPUs, through NVML: needs the package nvidia-ml-py (extra `gpu`)."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import ExitStack
from importlib import import_module
from typing import Any

from daemon.monitoring.gpu_state import MAX_GPUS, GpuState

# Bits of nvmlDeviceGetCurrentClocksEventReasons, from the group NvmlClocksEventReasons of the NVML API reference.
SW_POWER_CAP, HW_POWER_BRAKE = 0x04, 0x80
SW_THERMAL, HW_THERMAL = 0x20, 0x40
HW_SLOWDOWN = 0x08  # heat or power; older drivers do not say which

log = logging.getLogger(__name__)


def open_nvml() -> NvmlSource | None:
    """Return the driver's GPUs; None without the package, without a driver and where the driver has no GPU.

    Raises NVMLError where a GPU does not answer, and no other one does.
    """
    try:
        nvml = import_module("pynvml")
    except ImportError:
        return None
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        log.debug("NVML: %s", error)
        return None
    source = NvmlSource(nvml)
    with ExitStack() as unless_told:
        unless_told.callback(source.close)
        if source.read():  # on a Jetson the driver of JetPack 6 knows its GPU, and tells nothing of it
            unless_told.pop_all()
            return source
    return None


class NvmlSource:
    """The GPUs of the driver, by its own numbers. MIG instances are not told apart."""

    def __init__(self, nvml: Any):
        self._nvml = nvml
        # What is told by no value, and is no fault: other GPUs, other drivers, and instances of MIG.
        self._untold = (nvml.NVMLError_NotSupported, nvml.NVMLError_NoPermission, nvml.NVMLError_FunctionNotFound)

    def read(self) -> dict[str, GpuState]:
        """Return the state of each GPU that tells any.

        Raises NVMLError where none tells any and one failed, as a GPU does that fell off the bus.
        """
        states, fault = {}, None
        for number in range(min(self._nvml.nvmlDeviceGetCount(), MAX_GPUS)):
            try:
                states[str(number)] = self._state(number)
            except self._untold:  # one that this user may not ask is counted all the same
                continue
            except self._nvml.NVMLError as error:
                fault = error
        known = {number: state for number, state in states.items() if state.is_known}
        if fault is not None and not known:
            raise fault
        return known

    def close(self) -> None:
        """Let the driver go. Raises NVMLError."""
        self._nvml.nvmlShutdown()

    def _state(self, number: int) -> GpuState:
        nvml = self._nvml
        handle = nvml.nvmlDeviceGetHandleByIndex(number)
        busy = self._told(lambda: nvml.nvmlDeviceGetUtilizationRates(handle).gpu)
        memory = self._told(lambda: nvml.nvmlDeviceGetMemoryInfo(handle))
        return GpuState(
            None if busy is None else busy / 100,
            None if memory is None else memory.used,
            None if memory is None else memory.total,
            self._told(lambda: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU)),
            self._throttled(handle),
        )

    def _throttled(self, handle: Any) -> frozenset[str] | None:
        # Called ...ThrottleReasons before the package's version 12.535.
        name = "nvmlDeviceGetCurrentClocksEventReasons"
        ask = getattr(self._nvml, name, None) or self._nvml.nvmlDeviceGetCurrentClocksThrottleReasons
        bits = self._told(lambda: ask(handle))
        return None if bits is None else frozenset(_reasons(bits))

    def _told(self, ask: Callable[[], Any]) -> Any:
        try:
            return ask()
        except self._untold:
            return None


def _reasons(bits: int) -> set[str]:
    found = {"heat": bits & (SW_THERMAL | HW_THERMAL), "power": bits & (SW_POWER_CAP | HW_POWER_BRAKE)}
    reasons = {reason for reason, set_bits in found.items() if set_bits}
    return reasons or ({"unknown"} if bits & HW_SLOWDOWN else set())
