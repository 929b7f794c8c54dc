"""What a GPU says of itself, whichever way it is asked."""

from __future__ import annotations

from typing import NamedTuple, Protocol

THROTTLE_REASONS = ("heat", "power", "unknown")  # labels of recald_gpu_throttled
MAX_GPUS = 8  # that are exported


class GpuState(NamedTuple):
    """None for what the GPU does not tell.

    utilization: share of the time in which it computed, 0 to 1. Memory in bytes. temperature: °C. throttled: the
    reasons, of THROTTLE_REASONS, that slow it down now.
    """

    utilization: float | None = None
    memory_used: float | None = None
    memory_total: float | None = None
    temperature: float | None = None
    throttled: frozenset[str] | None = None

    @property
    def is_known(self) -> bool:
        """Return whether the GPU tells anything at all."""
        return any(value is not None for value in self)


class GpuSource(Protocol):
    """A way to ask. Its methods may fail with any exception and take any time."""

    def read(self) -> dict[str, GpuState]:
        """Return the state of each GPU that tells one, by its number."""

    def close(self) -> None:
        """Give back what asking took."""
